"""Answers as JSON Lines, written batch by batch; a file of them is gone on with where it ends.

{"settings": {...}}                           what the answers were made with; first, in a file
{"number": 0, "id": ..., "text": ..., ...}    an answer: its prompt's place, and the id that the prompt's line gave it
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hilora.base.outputs import check_file, refuse_held
from hilora.base.quantised import quantised_as
from hilora.cli.prompts import Asked
from hilora.errors import InputError
from hilora.jsonl import PACKED, json_line
from hilora.pool.trained import trained_path

if TYPE_CHECKING:
    from hilora.engine.generate import HiLoRA
    from hilora.types import Completion


def answer_line(number: int, asked: Asked, answer: Completion, encoding: str | None, **more: Any) -> str:
    """One line: the fields of the completion, and which prompt it answers.

    Args:
        number: of the prompt, from 0.
        asked: the prompt.
        answer: to it.
        encoding: of where it goes; characters that it does not have are escaped.
        more: what else is to be said.
    """
    named = {} if asked.id is None else {"id": asked.id}
    return json_line({"number": number, **named, **more, **asdict(answer)}, encoding) + "\n"


def write_answers(
    router: HiLoRA, asked: Sequence[Asked], on_done: Callable[[int], None], file: AnswerFile | None, **options: Any
) -> None:
    """Answer prompts, and write each batch when it is done, to standard output or to a file.

    Args:
        router: answers.
        asked: the prompts.
        on_done: called with how many are answered.
        file: where to, without the prompts that it has answers of; None: standard output.
        options: of `HiLoRA.generate`.
    """
    left = [number for number in range(len(asked)) if file is None or number not in file.done]
    before = len(asked) - len(left)
    out: TextIO = sys.stdout if file is None else file.open()

    def on_answers(batch: dict[int, list[Completion]]) -> None:
        for place, answers in sorted(batch.items()):
            number = left[place]
            more = {} if file is None else {"prompt": prompt_hash(asked[number])}
            lines = [answer_line(number, asked[number], each, out.encoding, **more) for each in answers]
            out.write("".join(lines))
        out.flush()

    try:
        if before:
            on_done(before)
        router.generate(
            [asked[number].prompt for number in left],
            on_batch=lambda done, _: on_done(before + done),
            on_answers=on_answers,
            **options,
        )
    finally:
        if file is not None:
            out.close()
            file.drop_if_new()


def prompt_hash(asked: Asked) -> str:
    """12 hexadecimal digits of a prompt's sha256, by which a file knows the prompts that it was begun with."""
    return hashlib.sha256(json.dumps(asked.prompt).encode()).hexdigest()[:12]


class AnswerFile:
    """A file of answers, to be begun or gone on with.

    Args:
        path: of plain JSON Lines.
        resume: go on with what is there.

    Attributes:
        done: numbers of the prompts that it answers already; known once it is begun.

    Raises:
        InputError: it is there and `resume` is not given, its name is that of an archive, it could not be written,
            or another run is writing it.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        if path.suffix == PACKED:
            raise InputError(f"Answers cannot be appended to {path}, an archive by its name. Give --out FILE.jsonl.")
        check_file(path)
        refuse_held(path)
        self.path, self.resume = path, resume
        self._refuse_existing()
        self.done: set[int] = set()

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self.resume:
            raise InputError(f"{self.path} is there. Give --resume to go on with it, or another --out.")

    def begin(self, settings: dict[str, Any], asked: Sequence[Asked], copies: Any = 1) -> None:
        """Write the settings, or compare them; what an interruption left of a last line or prompt is cut off.

        Whoever begins it holds it (`base.outputs.alone`) until all is written.

        Args:
            settings: all that answers depend on beside their prompts.
            asked: the prompts.
            copies: answers of each, as asked for.

        Raises:
            InputError: the file is something else, or was begun with other settings or prompts.
        """
        self._refuse_existing()  # another run may have begun and ended it while models were loaded
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        if not lines:
            self.path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8", newline="\n")
            return
        try:
            first, *rows = (json.loads(line) for line in lines)
            old, numbers = first["settings"], [(row["number"], row["prompt"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is no file that generate --out has begun. Give another --out.") from error
        wanted = json.loads(json.dumps(settings))
        if changed := [key for key in {**old, **wanted} if old.get(key) != wanted.get(key)]:
            raise InputError(
                f"{self.path} was begun with another {', '.join(changed)}. Give the same again, or another --out."
            )
        hashes = [prompt_hash(each) for each in asked]
        for number, prompt in numbers:
            if number >= len(asked) or prompt != hashes[number]:
                raise InputError(
                    f"{self.path} answers another prompt {number} than the one given now. Give the prompts that it "
                    f"was begun with (more may follow them), or another --out."
                )
        counts = Counter(number for number, _ in numbers)
        self.done = {number for number, count in counts.items() if count == copies}
        whole = [lines[0], *(line for line, (n, _) in zip(lines[1:], numbers, strict=True) if n in self.done)]
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in whole))

    def drop_if_new(self) -> None:
        """Leave nothing of a run that answered nothing, such as one that was refused."""
        if self.path.read_bytes().count(b"\n") == 1:
            self.path.unlink()

    def open(self) -> TextIO:
        """The file, to append to."""
        return self.path.open("a", encoding="utf-8", newline="\n")


def settings_of(router: HiLoRA, options: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """All that answers depend on beside their prompts.

    Args:
        router: answers.
        options: of generation, with the seed.
        method: options of the method.
    """
    pool, built = router.planner.pool, router.planner.method
    held = [f"{entry.name} {entry.hash} {entry.samples} {entry.enabled}" for entry in pool.entries]
    part = None if built.part is None else trained_path(pool.path, built.part)
    if part is not None and part.exists():
        held.append(hashlib.sha256(part.read_bytes()).hexdigest())
    return {
        "base": pool.base.name,
        "dtype": str(router.model.dtype).removeprefix("torch."),
        "quantised": quantised_as(router.model),
        "pool": hashlib.sha256("\n".join(held).encode()).hexdigest()[:16],
        "method": built.name,
        "method options": method,
        **options,
    }
