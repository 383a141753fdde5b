"""What documents say is what the program does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hilora
from hilora.cli.app import app
from hilora.evaluate.routing import SCORERS
from hilora.methods.table import METHODS

ROOT = Path(__file__).parent.parent


def commands() -> set[str]:
    """Every command of the program, as people type it."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"hilora {name} {sub}" for sub in inner} or {f"hilora {name}"}
    return found


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    known = commands()
    assert [command for command in sorted(known) if f"`{command}" not in text] == []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for line in re.findall(
            r"hilora ((?:pool|train|evaluate) [a-z-]+|route|generate|methods|demo)\b", page.read_text()
        ):
            assert f"hilora {line}" in known, page


def test_every_method_is_in_its_modules_table() -> None:
    text = (ROOT / "hilora" / "methods" / "table.py").read_text().split('"""')[1]
    assert all(f"\n{name} " in text for name in METHODS)


def test_every_scorer_is_named_in_the_help() -> None:
    group = typer.main.get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    (option,) = [p for p in group.commands["routing"].params if p.name == "methods"]
    assert all(name in option.help for name in SCORERS)


def test_the_public_names_are_these() -> None:
    assert sorted(hilora.__all__) == [
        "Completion",
        "Embedder",
        "HiLoRA",
        "HiloraError",
        "METHODS",
        "Planner",
        "Pool",
        "get_method",
    ]
    assert all(getattr(hilora, name) is not None for name in hilora.__all__)
    assert [name for name in dir(hilora) if not name.startswith("_")] == sorted(hilora.__all__)
    assert "__version__" in dir(hilora)


def test_what_the_readme_quotes_is_what_was_measured(scripts: Any) -> None:
    script, text = scripts.load("reproduce/quoted.py"), (ROOT / "README.md").read_text()
    assert len(script.QUOTE.findall(text)) == text.count("<!-- from ") >= 1
    assert script.quoted(text, ROOT) == text


def test_a_quoted_table_is_the_first_under_its_heading(scripts: Any, tmp_path: Path) -> None:
    script = scripts.load("reproduce/quoted.py")
    (tmp_path / "page.md").write_text("## One\n\nwords\n\n| a |\n| b |\n\n| c |\n\n## Two\n\n## Three\n\n| d |\n")
    text = "x\n<!-- from page.md: One -->\nold\n<!-- end -->\n<!-- from page.md: Three -->\n<!-- end -->\n"
    once = script.quoted(text, tmp_path)
    assert once.splitlines() == [
        *("x", "<!-- from page.md: One -->", "| a |", "| b |", "<!-- end -->"),
        *("<!-- from page.md: Three -->", "| d |", "<!-- end -->"),
    ]
    assert script.quoted(once, tmp_path) == once
    for heading in ("Two", "Four"):
        with pytest.raises(ValueError, match=heading):
            script.quoted(f"<!-- from page.md: {heading} -->\n<!-- end -->", tmp_path)
