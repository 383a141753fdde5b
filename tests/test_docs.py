"""What documents say is what the program does."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hilora
from hilora import errors
from hilora.cli.app import app
from hilora.evaluate.routing import SCORERS
from hilora.methods.table import METHODS
from hilora.types import Choice

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


def test_the_readmes_table_is_the_one_that_was_measured() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- from reproduce/hilora/results.md -->\n")[1].split("\n<!-- end -->")[0]
    assert table.count("\n") > 10
    assert table in (ROOT / "reproduce" / "hilora" / "results.md").read_text()


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if ":" in path:
            continue
        found = page if not path else page.parent / path
        assert found.exists(), f"{page.name}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_every_page_is_in_the_index() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in text] == ["index.md"]


def test_every_public_name_and_error_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for name in hilora.__all__:
        assert re.search(rf"auto\w+:: hilora\.(\w+\.)*{name}\n", text), name
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds == set(re.findall(r"autoexception:: hilora\.(?:errors\.)?(\w+)", text))


def test_what_the_reference_names_exists() -> None:
    for kind, name in re.findall(r"\.\. auto(\w+):: (\S+)", (ROOT / "docs" / "api.md").read_text()):
        parent, _, own = name.rpartition(".")
        assert import_module(name) if kind == "module" else hasattr(import_module(parent), own), name


def test_the_sites_index_lists_what_its_page_links(scripts: Any) -> None:
    conf = scripts.load("docs/conf.py")
    page = "| [a](a.md) | |\n| [b](b.md#c) and [a](a.md), [x](x.py) |\n[d](d.md)\n"
    assert conf.with_toctree(page) == page + "\n```{toctree}\n:hidden:\n\na.md\nd.md\n```\n"


def test_links_to_folders_lead_to_their_readme(scripts: Any, tmp_path: Path) -> None:
    conf = scripts.load("docs/conf.py")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("")
    (tmp_path / "b").mkdir()
    page = "[a](a), ![a](a/), [b](b), [c](a/README.md), (a)"
    assert conf.with_readmes(page, tmp_path) == "[a](a/README.md), ![a](a/README.md), [b](b), [c](a/README.md), (a)"


def test_what_stands_beside_fields_is_told(scripts: Any) -> None:
    conf = scripts.load("docs/conf.py")
    lines = ["One answer's part:", "", "    code", ""]
    conf.read_docstring(None, "class", "", Choice, None, lines)
    assert lines[:3] == ["One answer's part::", "", "    code"]
    assert "    rank: the ROCs that it has" in lines
    assert "Attributes:" in lines
    told = ["Args:", "    a: b"]
    conf.read_docstring(None, "function", "", conf.setup, None, told)
    assert told == ["Args:", "    a: b"]


def test_the_page_about_quantised_bases_shows_the_rows_beside_the_benchmark(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = scripts.load("benchmarks/quantised.py")
    page = (ROOT / "docs" / "gpus.md").read_text()
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "quantised.jsonl").read_text().splitlines()]
    assert script.on_page(page, rows) == page
    assert script.on_page(page, rows[:1] + [row | {"same": 0.5} for row in rows[1:]]) != page
