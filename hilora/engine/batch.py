"""Rows that step together, and the room that their keys and values take.

Each batch counts with the most that its buffers can take while its rows are what they are. A request starts when that
of all batches and its own fit into memory together, else it waits. Rows whose prompts are read join others if the
larger batch fits, else they step by themselves. One layer is there twice while buffers are replaced (`rectangle`), so
a token counts with its largest layer twice all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hilora.engine.rectangle import Rectangle, most_room
from hilora.engine.request import Request
from hilora.errors import InputError

WIDE = 2
"""A row joins others of up to so many times its length, or that many times shorter; else it steps with its like."""
SMALL = 256
"""Tokens below which lengths count as alike."""


@dataclass(eq=False)
class Batch:
    """Rows that step together."""

    rows: list[Request]
    held: Rectangle
    idle: int = 0  # steps since the first of them ended

    @property
    def room(self) -> int:
        """Tokens that its buffers have room for, now or at any later step, unless others join.

        They stay as they are, or are replaced by such as its rows need at most; and rows only become fewer.
        """
        rows, columns = self.held.size
        return max(rows * columns, room_of(self.rows))

    def is_like(self, other: Batch) -> bool:
        """Whether its rows and those of another may well step together."""
        short, long = sorted([self.held.frame.width, other.held.frame.width])
        return bool(other.rows) and self.rows[0].serve is other.rows[0].serve and long <= max(SMALL, WIDE * short)


@dataclass(eq=False)
class FixedBatch(Batch):
    """Rows whose steps are compiled: their keys and values have places that are there anyway."""

    held: Any

    @property
    def room(self) -> int:
        """None of what others share."""
        return 0

    def is_like(self, other: Batch) -> bool:
        """It takes rows in its own way."""
        return False


def join_fixed(batch: Batch, batches: list[Batch]) -> None:
    """Rows that have been read go to the batch of compiled steps that serves them, made where there is none."""
    held = batch.rows[0].serve.fixed.held
    into = next((each for each in batches if each.held is held), None)
    if into is None:
        into = FixedBatch([], held)
        batches.append(into)
    held.take(batch.held)
    into.rows += batch.rows


def room_of(rows: Sequence[Request]) -> int:
    """Tokens that buffers made for these rows have room for at most, to the last token of each."""
    return most_room(len(rows), max((len(row.ids) + row.most for row in rows), default=0))


def joined_room(one: Batch, other: Batch) -> int:
    """The same of two batches that become one, also while they do: as a new layer is there, both old ones go."""
    return max(one.room + other.room, room_of([*one.rows, *other.rows]))


def refusal(length: int, most: int, per_token: int, memory: int | float) -> InputError | None:
    """Why a prompt of so many tokens, with up to so many new ones, can never run; None if it can.

    Args:
        length, most: of the prompt, and of the answer.
        per_token, memory: bytes of a token, and of all that there is.
    """
    needed = most_room(1, length + most) * per_token
    if needed <= memory:
        return None
    return InputError(
        f"A prompt of {length} tokens with up to {most} new ones takes {needed / 1e6:.4g} MB of keys and values, and "
        f"all prompts together may take {memory / 1e6:.4g} MB. Raise kv_memory, shorten the prompt, or ask for fewer "
        "tokens."
    )
