"""JSON Lines of benchmarks: shown as they come, and kept in a file, if one is given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hilora.base.outputs import check_file

Line = dict[str, Any]


def append(path: Path | None, line: Line) -> None:
    """Add a line to what a file holds: what took long is kept, whatever comes after."""
    if path:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def add(path: Path | None, lines: Iterable[Line]) -> None:
    """Show lines as they come, and append each at once."""
    for line in lines:
        print(line, flush=True)
        append(path, line)


def write(path: Path | None, lines: Iterable[Line]) -> None:
    """Show lines as they come, and put them, when all are there, in place of what a file held."""
    if path:
        check_file(path)  # lines may take hours to come
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(json.dumps(line) + "\n")
    if path:
        path.write_text("".join(kept))


def placed(page: str, begin: str, end: str, told: str) -> str:
    """A page with a text between two of its lines, in place of what stood there."""
    before, rest = page.split(begin)
    return f"{before}{begin}{told}\n{end}{rest.split(end, 1)[1]}"


def show(told: str, page: Path | None, begin: str, end: str) -> None:
    """A table is shown, and put into its place on a page, if one is given."""
    print(told)
    if page:
        page.write_text(placed(page.read_text(), begin, end, told))
