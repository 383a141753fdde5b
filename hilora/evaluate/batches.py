"""Batches of rows, and how long their answers may be: fixed beforehand, the same whenever they are asked for.

They depend on the seed, the data, the batch size and what other methods and files have answered, not on where a run
was interrupted. An answer may be as long as its task's longest reference, rounded up to a power of two; tasks of one
limit share batches, as do prompts of like length, so that few rows wait for others. The law that a row in a batch
equals the row alone, up to rounding, makes the rest a matter of time only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hilora.evaluate.rows import Row
from hilora.evaluate.settings import Case

WINDOW = 8
"""Batches within which prompts are ordered by length."""


def answer_limits(rows: Sequence[Row], tokenizer: Any, most: int) -> dict[str, int]:
    """Task -> the most tokens of an answer: its longest reference and the end token, up to a power of two."""
    longest: dict[str, int] = {}
    for row, ids in zip(rows, tokenizer([row.targets for row in rows])["input_ids"], strict=True):
        longest[row.task] = max(longest.get(row.task, 0), len(ids) + 1)
    return {task: min(most, max(8, 2 ** (length - 1).bit_length())) for task, length in longest.items()}


def schedule(
    cases: Sequence[Case],
    lengths: Sequence[int],
    limits: Mapping[str, int],
    batch_size: int,
    seed: int,
    numbers: Sequence[int],
) -> Iterator[list[int]]:
    """Batches of these case numbers: shuffled, one limit in a batch, prompts by length within a few batches."""
    shuffled = np.random.default_rng(seed).permutation(numbers).tolist()
    for limit in sorted(set(limits.values())):
        order = [i for i in shuffled if limits[cases[i].row.task] == limit]
        for start in range(0, len(order), WINDOW * batch_size):
            window = sorted(order[start : start + WINDOW * batch_size], key=lambda i: lengths[i])
            for at in range(0, len(window), batch_size):
                yield window[at : at + batch_size]
