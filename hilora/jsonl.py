"""Lines of JSON Lines files, with their numbers for messages; what a line must hold is its reader's affair."""

from __future__ import annotations

from pathlib import Path

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
