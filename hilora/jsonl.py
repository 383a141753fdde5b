"""JSON by the line: reading JSON Lines, and writing JSON with a line per entry, so that a diff can be read.

Lines are read with their numbers for messages; what a line must hold is its reader's affair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora.errors import InputError


def numbered_lines(path: Path, what: str = "") -> list[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank; only a line feed ends a line.

    Args:
        path: a text file in UTF-8.
        what: what the file holds, for the message, e.g. "the samples".

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {f'{what} {path}'.strip()}: {error}.") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def entry_lines(numbers: Mapping[str, Any], depth: int = 1) -> str:
    """JSON with a line for each entry; with a larger depth, also for each entry of the objects in it."""
    lines = [
        f"{json.dumps(key)}: "
        + (entry_lines(value, depth - 1) if depth > 1 and isinstance(value, dict) else json.dumps(value))
        for key, value in numbers.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}"


def write_entries(numbers: Mapping[str, Any], path: Path) -> Path:
    """Write a line for each entry; the folder is made. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(entry_lines(numbers) + "\n", encoding="utf-8")
    return path
