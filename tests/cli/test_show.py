"""Laws of what is shown: nothing is cut, on a narrow screen or in a pipe."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from typer.testing import CliRunner

from hilora import METHODS
from hilora.cli import show
from hilora.cli.app import app
from hilora.evaluate.tables import rich_table
from hilora.methods.lookup import method_table
from hilora.types import Choice

LABELS = ["hilora:gamma=0.25:k=5:criterion=magnitude", "hilora-plus", "base", "moe-top3", "a[b]c"]
HEADING = ("method", "average", "95 %", "difference", "95 %", "p", "% of oracle", "gap closed", "harm %")
CELLS = ("**43.1**", "41.0 to 45.2", "+0.1", "-1.9 to +2.1", "0.912", "88.2", "0.71", "3.2")


class Terminal(io.StringIO):
    """Somebody is looking."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lines of what is printed, on a screen of so many columns, or into a pipe."""

    def printed(what: Any, width: int | None) -> list[str]:
        out = io.StringIO() if width is None else Terminal()
        screen = show.Screen(file=out, width=width, color_system=None, highlight=False)
        monkeypatch.setattr(show, "console", screen)
        what()
        return out.getvalue().splitlines()

    return printed


def evaluation() -> None:
    show.console.print(rich_table(HEADING, [(label, *CELLS) for label in LABELS]))


def by_method() -> None:
    scores = [f"{value}.5" for value in range(len(METHODS))]
    show.console.print(rich_table(("task", *METHODS), [(f"task_{i}_of_the_pool", *scores) for i in range(3)]))


def choices() -> None:
    names = ["definite_pronoun_resolution", "natural-questions-open-domain-with-context-and-long-name"]
    show.show_route("?", [Choice(name, -123.45, 0.5, 4, 8, True) for name in names])


def methods() -> None:
    show.show_methods(method_table())


@pytest.mark.parametrize("what", [evaluation, by_method, choices, methods])
@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_a_table_is_whole_on_any_screen(what: Any, width: int | None, lines: Any) -> None:
    found = lines(what, width)
    assert not any("…" in line for line in found)
    assert width is None or max(map(len, found)) <= width
    whole = lines(what, None)
    cells = [word for line in whole for word in line.split() if not set(word) <= set("█")]
    text = " ".join(" ".join(line.split()) for line in found)
    assert not [word for word in cells if word not in text and len(word) <= 30]  # longer ones may be folded
    folded = text.replace(" ", "")
    assert all(letter in folded for letter in set("".join(cells)))


@pytest.mark.parametrize("width", [80, None])
def test_names_of_methods_and_adapters_stay_in_one_piece(width: int | None, lines: Any) -> None:
    assert all(any(line.split()[:1] == [name] for line in lines(methods, width)) for name in METHODS)
    assert any(line.split()[:1] == ["task_1_of_the_pool"] for line in lines(by_method, width))
    headings = set(itertools.chain.from_iterable(line.split() for line in lines(by_method, width)))
    assert set(METHODS) <= headings
    assert all(any(label in line for line in lines(evaluation, width)) for label in LABELS)


def test_columns_without_room_go_below_with_the_names_before_them(lines: Any) -> None:
    found = lines(by_method, 80)
    assert sum(line.split()[:1] == ["task_0_of_the_pool"] for line in found) > 1
    assert sum(line.split()[:1] == ["task_0_of_the_pool"] for line in lines(by_method, None)) == 1


def test_in_a_pipe_no_line_is_broken() -> None:
    out = CliRunner().invoke(app, ["methods"]).stdout
    told = [part for row in method_table() for part in (*row["summary"].splitlines(), row["options"])]
    assert max(map(len, told)) > 120
    assert all(any(part.strip() in line for line in out.splitlines()) for part in told)
