"""Prompts as people give them: arguments, a file, standard input; lines, or the whole as one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilora.base.prompts import Prompt, check_whole
from hilora.base.records import ASKED, prompt_of
from hilora.errors import InputError
from hilora.jsonl import ENCODING, number_lines, parse_line, read_text

STDIN = "standard input"


@dataclass(frozen=True)
class Asked:
    """A prompt, and the "id" that its line gives it; None where it gives none."""

    prompt: Prompt
    id: Any = None


def read_asked(prompts: Sequence[str] | None, file: Path | None, *, one: bool = False) -> list[Asked]:
    """Prompts from the command line, a file, or standard input, in this order.

    Args:
        prompts: as they are; "-" stands for what standard input holds.
        file: of lines, packed or plain.
        one: file and standard input are one prompt each, whatever is in them.

    Raises:
        InputError: there are none, a line is none, or the file cannot be read.
    """
    given: list[Asked] = []
    for prompt in prompts or ():
        given += _read(STDIN, _standard_input(), one) if prompt == "-" else [Asked(prompt)]
    if file is not None:
        given += _read(str(file), _file(file), one)
    piped = not prompts and file is None and sys.stdin is not None and not sys.stdin.isatty()
    if piped:
        given += _read(STDIN, _standard_input(), one)
    if not given:
        raise InputError("There is no prompt. Give one as an argument, with --file, or on standard input.")
    if one and file is None and not piped and "-" not in (prompts or ()):
        raise InputError("--one makes one prompt of a file or of standard input; got neither. Give --file, or '-'.")
    return given


def _file(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the prompts {path}: {error}. Expected a file of text in UTF-8.") from error


def _standard_input() -> str:
    """All of it, in UTF-8 whatever the locale says."""
    if sys.stdin is None:
        return ""
    try:
        raw = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read() if raw is None else str(raw.read(), ENCODING)
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read the prompts from {STDIN}: {error}. Expected text in UTF-8.") from error


def _read(source: str, text: str, one: bool) -> Iterator[Asked]:
    """The prompts of a text: of each line, or all of it."""
    if one:
        if text.strip():
            yield Asked(text.rstrip("\r\n"))
        return
    for number, line in number_lines(text, source):
        where = f"{source}, line {number}"
        found = parse_line(line, where, plain=True)
        if isinstance(found, dict | list):
            fields = found if isinstance(found, dict) else {"messages": found}
            try:
                asked = Asked(prompt_of(fields), fields.get("id"))
            except InputError as error:
                raise InputError(f"{where}: a prompt line needs one of {ASKED}; got {line:.60} ({error})") from error
        else:
            asked = Asked(found if isinstance(found, str) else line)
        if isinstance(asked.prompt, str):  # a chat has been looked at
            check_whole(asked.prompt, where)
        yield asked
