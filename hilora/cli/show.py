"""What people see: tables, bars and explanations, with rich. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hilora.base.prompts import Prompt, query_text
from hilora.evaluate.fitted import Fitted

if TYPE_CHECKING:
    from hilora.analyse.confusion import Diagnosis, Rival
    from hilora.types import Choice, Completion

BAR = 20
UNLIMITED = 1_000_000
PAUSE = 10
"""Seconds between two lines of progress in a log."""
SEEN = {True: "[green]seen[/]", False: "[yellow]unseen[/]", None: "-"}


class Screen(Console):
    """Wraps lines for a screen only; in a pipe or a file they are as long as they need to be."""

    def __init__(self, **options: Any) -> None:
        # a width that the environment names is a screen's, too
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        super().__init__(_environ=environment, **options)

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        found = super().size
        return found if self.file.isatty() else ConsoleDimensions(self._width or UNLIMITED, found.height)


console = Screen()
errors = Screen(stderr=True)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner on stderr while something loads."""
    with errors.status(message + " …"):
        yield


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: int, note: str = "") -> None:
        """Set what is done, with a note beside the bar."""
        ...


@contextmanager
def progress(total: int, unit: str, *, bar: bool = True) -> Iterator[Advance]:
    """A bar on stderr with the time left, or a plain line now and then where that is no terminal.

    Args:
        total: how much there is to do.
        unit: of what.
        bar: False where results go to the same terminal meanwhile, and a bar would wipe them out.

    Yields:
        what moves it.
    """
    terminal = errors.is_terminal and not errors.is_dumb_terminal
    with _bar(total, unit) if terminal and bar else _lines(total, unit) as advance:
        yield advance


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Advance]:
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    # what is printed meanwhile goes through the bar only where it would end up in the same place
    with Progress(*columns, console=errors, transient=True, redirect_stdout=console.is_terminal) as bar:
        task = bar.add_task(unit, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield advance


@contextmanager
def _lines(total: int, unit: str) -> Iterator[Advance]:
    """At most one line every `PAUSE` seconds, and where it ended."""
    said, last, when = "", "", time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal said, last, when
        last = f"{done} of {total} {unit}" + (f", {note}" if note else "")
        if time.monotonic() - when >= PAUSE:
            said, when = last, time.monotonic()
            print(said, file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if last != said:
            print(last, file=sys.stderr, flush=True)


def choices_table(choices: Sequence[Choice]) -> Fitted:
    """Adapters of one row: score, weight, ROCs, seen or unseen."""
    table = Fitted(pad_edge=False, header_style="dim")
    for heading in ("adapter", "score", "weight", "", "ROCs", ""):
        table.add_column(heading, justify="right" if heading in ("score", "weight", "ROCs") else "left")
    for choice in choices:
        bar = "█" * round(choice.weight * BAR)
        table.add_row(
            f"[bold]{escape(choice.name)}[/]",
            f"{choice.score:.2f}",
            f"{choice.weight:.2f}",
            f"[cyan]{bar}[/]",
            f"{choice.rocs} of {choice.rank}",
            SEEN[choice.seen],
        )
    return table


def show_route(prompt: Prompt, choices: Sequence[Choice], note: str = "") -> None:
    """One prompt and the adapters that would serve it."""
    console.print(f"[dim]>[/] {escape(shorten(query_text(prompt)))}")
    if choices:
        console.print(choices_table(choices))
    if note:
        console.print(f"[yellow]{escape(note)}[/]")
    console.print()


def show_completion(prompt: Prompt | None, answer: Completion, *, text: bool = True, verdict: str = "") -> None:
    """One prompt, its answer, what is to be said of that (in markup), and why."""
    if prompt is not None:
        console.print(f"[dim]>[/] {escape(shorten(query_text(prompt)))}")
    if text:
        console.print(Panel.fit(escape(answer.text.strip() or "(empty)"), border_style="green"))
    if verdict:
        console.print(verdict)
    if answer.choices:
        console.print(choices_table(answer.choices))
    if answer.note:
        console.print(f"[yellow]{escape(answer.note)}[/]")
    console.print()


def print_stream(pieces: Generator[str, None, Completion]) -> Completion:
    """Print pieces as they come; returns the completion. If nobody reads them any more, no more are made."""
    with closing(pieces):
        while True:
            try:
                print(next(pieces), end="", flush=True)
            except StopIteration as end:
                print()
                answer: Completion = end.value
                return answer


def show_methods(table: Sequence[dict[str, str]]) -> None:
    """The method table."""
    out = Fitted("method", "what it does", "options", header_style="dim")
    for row in table:
        out.add_row(f"[bold]{row['name']}[/]", escape(row["summary"]), f"[dim]{escape(row['options'])}[/]")
    console.print(out)


def show_adapters(entries: Sequence[Any]) -> None:
    """The adapters of a pool."""
    out = Fitted(header_style="dim")
    for heading in ("adapter", "rank", "sites", "parameters", "samples", "hash", ""):
        out.add_column(heading, justify="left" if heading in ("adapter", "hash", "") else "right")
    for entry in sorted(entries, key=lambda e: e.name):
        state = "" if entry.enabled else "[yellow]disabled[/]"
        size = f"{entry.num_parameters:,}"
        out.add_row(
            f"[bold]{escape(entry.name)}[/]",
            str(entry.rank),
            str(entry.num_sites),
            size,
            str(entry.num_samples),
            entry.hash[:12],
            state,
        )
    console.print(out)


def needs_care(problem: str, found: Diagnosis | None) -> bool:
    """Whether something is wrong with an adapter, or there is advice on it."""
    return bool(problem) or (found is not None and bool(found.advice))


def show_check(name: str, problem: str, found: Diagnosis | None) -> None:
    """An adapter's files, how well it is told from the others, and what to do."""
    mark = "[green]files are whole[/]" if found is None else "[green]good[/]"
    if needs_care(problem, found):
        mark = f"[red]{escape(problem)}[/]" if problem else "[yellow]needs care[/]"
    console.print(f"[bold]{escape(name)}[/]  {mark}", highlight=False)
    if found is None:
        return
    shares = {k: "?" if rate is None else f"{rate:.0%}" for k, rate in found.measured.items()}
    told = ", ".join(f"{shares[k]} at top {k} (bound {found.bound[k]:.1%})" for k in found.bound)
    console.print(f"  missed on {told}, of {found.num_held} held-out samples", highlight=False)
    rivals = [f"{escape(r.name)} (B {r.distance:.1f}{_taken(r)})" for r in found.rivals]
    console.print(f"  [dim]nearest: {', '.join(rivals)}[/]", highlight=False)
    for sentence in found.advice:
        console.print(f"  [yellow]{escape(sentence)}[/]", highlight=False)


def _taken(rival: Rival) -> str:
    return "" if rival.lost is None else f", takes {rival.lost:.0%}"


def show_files(files: Iterable[Path]) -> None:
    """Paths of what was written, one a line, as they are."""
    for file in files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)


def shorten(text: str, width: int = 100) -> str:
    """One line of a text."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
