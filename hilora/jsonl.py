"""JSON by the line: reading JSON Lines, and writing JSON with a line per entry, so that a diff can be read.

Lines are read with their numbers for messages; what a line must hold is its reader's affair (`base.records`). A file
whose name ends in .gz is read as what was packed into it, by whoever reads text through `read_text`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora.errors import InputError

PACKED = ".gz"
"""How the name of a packed file ends."""
ENCODING = "utf-8-sig"
"""UTF-8, with or without a byte-order mark."""
MARK = "\ufeff"
OPENING = ("{", "[", '"')
"""What JSON begins with that no plain text is taken for."""
ENDS = re.compile("[\x85\u2028\u2029]")
"""What some readers take for the end of a line; JSON escapes others itself."""
BETWEEN = re.compile(r"[\s,]*")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, unpacked where its name says that it is packed; its line ends stay as they are.

    Raises:
        InputError: the file is named as an archive and is no whole one.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    if path.suffix != PACKED:
        with path.open(encoding=ENCODING, newline="") as plain:
            return plain.read()
    try:
        if not path.stat().st_size:
            raise gzip.BadGzipFile("the file is empty")  # gzip would take it for an archive of nothing
        with gzip.open(path, "rt", encoding=ENCODING, newline="") as file:
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
        InputError: the file cannot be read, or a line is not JSON (names it).
    """
    return [parse_line(line, f"{path}, line {number}") for number, line in numbered_lines(path)]


def numbered_lines(path: Path, what: str = "") -> list[tuple[int, str]]:
    """(number from 1, line) of every line of a file that is not blank, as `number_lines` tells lines.

    Args:
        path: a text file in UTF-8, packed or plain.
        what: what the file holds, for the message, e.g. "the samples".

    Raises:
        InputError: the file cannot be read.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read {f'{what} {path}'.strip()}: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"Cannot read {f'{what} {path}'.strip()}: {error}.") from error
    return number_lines(text, str(path))


def number_lines(text: str, source: str) -> list[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank; only a line feed ends a line.

    A byte-order mark, and the carriage return of CRLF, are no part of a line. Where the whole text is one JSON array,
    each of its elements counts as a line, numbered by where it begins.

    Args:
        text: of a file, or from standard input.
        source: its name, for messages.

    Raises:
        InputError: the text begins as an array and is none (names the line).
    """
    text = text.removeprefix(MARK)
    lines = (line.removeprefix(MARK).removesuffix("\r") for line in text.split("\n"))
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if found and found[0][1].lstrip().startswith("["):
        return _elements(text, found[0][1], source) or found
    return found


def _elements(text: str, first: str, source: str) -> list[tuple[int, str]]:
    """The elements of an array that is the whole text, as lines; none where each line is JSON of its own."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            if not first.rstrip().endswith(("[", "{", ",")):  # a damaged line: its reader says so
                return []
            number = getattr(error, "lineno", 1)
            shown = text.split("\n")[number - 1].strip()
            raise InputError(f"{source}, line {number} is no JSON: {shown:.60} {_mend(error)}") from error
        return []
    if not whole or all(isinstance(each, dict) and "role" in each for each in whole):  # one chat
        whole = [whole] if whole else []
        text = json.dumps(whole)
    decoder, found, place, number = json.JSONDecoder(), [], text.index("[") + 1, 1
    number += text.count("\n", 0, place)
    for each in whole:
        between = BETWEEN.match(text, place)
        start = between.end() if between else place
        number += text.count("\n", place, start)
        place = decoder.raw_decode(text, start)[1]
        if not isinstance(each, str | dict | list):
            raise InputError(f"{source}, line {number}: expected a text or an object, got {text[start:place]:.60}")
        found.append((number, json.dumps(each, ensure_ascii=False)))
        number += text.count("\n", start, place)
    return found


def parse_line(line: str, where: str, plain: bool = False) -> Any:
    """What a line of JSON says.

    Args:
        line: one from `number_lines`.
        where: its file and number, for the message.
        plain: a line that does not begin as JSON is a text.

    Raises:
        InputError: it is not JSON, or damaged.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if plain and not line.lstrip().startswith(OPENING):
            return line
        raise InputError(f"{where} is no JSON: {line.strip():.60} {_mend(error, plain)}") from error


def _mend(error: Exception, plain: bool = True) -> str:
    """What is wrong with JSON, and what to do."""
    said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
    return f"({said}). Mend it" + ("; a text that begins like that is written as a JSON string." if plain else ".")


def json_line(row: Any, encoding: str | None = None) -> str:
    """A value as JSON on one line, for whatever splits lines; characters that the encoding lacks are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", line)


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
