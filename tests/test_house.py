"""The house keeps its order: imports point towards the ground, and the reading path stays short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    *("types", "errors", "jsonl", "base", "route", "compose", "merge", "pool", "methods", "planner", "engine"),
    *("train", "evaluate", "analyse", "bench", "serve", "gateway", "vllm", "cli"),
)
"""From the ground up. What stands at the ground is imported by all; `cli` imports whatever it needs."""
GROUND = ("", "types", "errors", "jsonl")
"""The first floors are one: these import nothing but each other. "" is the package, for its version."""
PATH = (
    "types",
    "errors",
    "pool.view",
    "route.gaussian",
    "route.candidates",
    "route.allocate",
    "route.router",
    "methods.method",
    "planner",
    "compose.delta",
    "compose.rocs",
    "engine.attach",
)
"""Whoever has read these has read HiLoRA; `docs/architecture.md` says in which order."""
MOST_LINES = 1050
LONGEST = 250
TWO_NOUNS_YET = {"engine.generate"}
"""Reshaped with the engine."""


def modules() -> dict[str, Path]:
    """Dotted name below the package -> its file."""
    found = {}
    for path in sorted((ROOT / "hilora").rglob("*.py")):
        parts = path.relative_to(ROOT / "hilora").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, text: str) -> Iterator[tuple[int, str]]:
    """(line, module below the package) of each import of ours, also those inside functions and for types alone."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hilora":
                    yield node.lineno, alias.name.removeprefix("hilora").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"hilora.{name}, line {node.lineno}: an import says from where, not how far up"
            if node.module and node.module.split(".")[0] == "hilora":
                inside = node.module.removeprefix("hilora").removeprefix(".")
                for alias in node.names:
                    whole = f"{inside}.{alias.name}".removeprefix(".")
                    yield node.lineno, whole if whole in MODULES else inside


def height(name: str) -> int:
    """Which floor a module stands on."""
    floor = name.split(".", maxsplit=1)[0]
    return 0 if floor in GROUND else FLOORS.index(floor)


def climbs(name: str, text: str) -> list[str]:
    """The imports of a module that point up, each with its line."""
    return [
        f"hilora.{name}, line {line}: imports hilora.{other}, which stands above it"
        for line, other in imports(name, text)
        if height(other) > height(name)
    ]


def loops(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves by way of others."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        left = [name]
        while left:
            for other in graph[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    return [name for name in graph if name in reached(name)]


INNER = [name for name in MODULES if name not in ("", "__main__")]


@pytest.mark.parametrize("name", INNER)
def test_an_import_points_only_towards_the_ground(name: str) -> None:
    assert climbs(name, MODULES[name].read_text()) == []


def test_imports_that_point_up_are_named_wherever_they_hide() -> None:
    inside = "def f():\n    from hilora.engine import attach\n"
    assert climbs("base.models", inside) == [
        "hilora.base.models, line 2: imports hilora.engine.attach, which stands above it"
    ]
    for text in (
        "import hilora.cli.app\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import hilora.pool\n",
    ):
        assert len(climbs("route.router", text)) == 1
    assert climbs("engine.attach", "from hilora.compose.delta import plain\nimport hilora\n") == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {other for _, other in imports(name, MODULES[name].read_text()) if other in INNER} - {name}
        for name in INNER
    }
    assert loops(graph) == []
    assert loops({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_nothing_else_stands_beside_the_folders() -> None:
    loose = {path.stem for path in (ROOT / "hilora").glob("*.py")}
    assert loose == {"__init__", "__main__", "types", "errors", "jsonl", "planner"}
    folders = {path.parent.name for path in (ROOT / "hilora").glob("*/__init__.py")}
    assert folders | loose - {"__init__", "__main__"} == set(FLOORS)


def test_the_reading_path_imports_only_itself_and_the_base() -> None:
    for name in PATH:
        strangers = [
            f"hilora.{name}, line {line}: hilora.{other}"
            for line, other in imports(name, MODULES[name].read_text())
            if other not in PATH and other.split(".")[0] != "base"
        ]
        assert strangers == []


def test_the_reading_path_is_read_in_one_sitting() -> None:
    assert sum(len(MODULES[name].read_text().splitlines()) for name in PATH) <= MOST_LINES


def test_what_the_architecture_page_says_is_to_be_read_is_what_is_counted() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    told = page.split("\nRead ")[1].split(": that is HiLoRA")[0]
    assert re.findall(r"`([^`]+)`", told) == [name.replace(".", "/") + ".py" for name in PATH]


@pytest.mark.parametrize("name", [name for name in INNER if name not in TWO_NOUNS_YET])
def test_a_module_is_one_noun(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= LONGEST


def test_tests_stand_in_the_folders_of_what_they_test() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert folders <= set(FLOORS) | {"reproduce", "checks"}


def test_no_test_is_skipped_for_want_of_a_package() -> None:
    """One that is missing fails: tests of lm-eval were skipped on every run, and nobody saw it."""
    call = "pytest.importorskip" + "("
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if call in path.read_text()] == []
