"""JSON by the line: reading JSON Lines, and writing JSON with a line per entry, so that a diff can be read.

Lines are read with their numbers for messages; what a line must hold is its reader's affair. A file whose name ends
in .gz is read as what was packed into it, by whoever reads text through `read_text`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora.errors import InputError

PACKED = ".gz"
"""How the name of a packed file ends."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, unpacked where its name says that it is packed.

    Raises:
        InputError: the file is named as an archive and is no whole one.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    if path.suffix != PACKED:
        return path.read_text(encoding="utf-8")
    try:
        if not path.stat().st_size:
            raise gzip.BadGzipFile("the file is empty")  # gzip would take it for an archive of nothing
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"Cannot read {path}: {error}. Expected a whole gzip archive. Get the file again from where it came, or "
            f"take {PACKED} from its name if it holds plain text."
        ) from error


def plain_path(path: Path) -> Path:
    """The path of a file once it is unpacked."""
    return path.with_suffix("") if path.suffix == PACKED else path


def read_lines(path: Path) -> list[Any]:
    """What each line of a JSON Lines file holds.

    Raises:
        InputError: a damaged archive.
        OSError, ValueError: the file cannot be read, or a line is not JSON.
    """
    return [json.loads(line) for line in read_text(path).splitlines()]


def numbered_lines(path: Path, what: str = "") -> list[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank; only a line feed ends a line.

    Args:
        path: a text file in UTF-8, packed or plain.
        what: what the file holds, for the message, e.g. "the samples".

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = read_text(path).split("\n")
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
