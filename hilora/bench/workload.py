"""What is timed: prompts, of random words if none are given, and the adapter that each one is pinned to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hilora.errors import InputError, UnknownNameError

SHARES = ("zipf", "identical", "distinct")
WORDS = (
    "time people water word place year work day part number sound way story house river film child letter garden "
    "engine music market winter road window paper summer village answer question bird mountain"
)


@dataclass(frozen=True)
class Workload:
    """A batch.

    Attributes:
        prompts: texts.
        adapters: for who is given one: its name for each prompt.
        new_tokens: to generate for each, whatever the end token says.
    """

    prompts: Sequence[str]
    adapters: Sequence[str]
    new_tokens: int

    @property
    def distinct(self) -> list[str]:
        """The adapters of the batch, each once."""
        return sorted(set(self.adapters))


def make_workload(
    names: Sequence[str],
    *,
    batch: int,
    adapters: int,
    share: str,
    words: int,
    new_tokens: int,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
) -> Workload:
    """Prompts, and adapters shared out over them.

    Args:
        names: adapters to choose from.
        batch: prompts.
        adapters: distinct adapters in the batch.
        share: "zipf" (the k-th has 1/k of the first's prompts, each at least one), "distinct" (equal shares) or
            "identical" (one adapter for all).
        words, new_tokens: of each prompt and answer.
        seed: of words and order.
        prompts: the first `batch` of them instead of random words; `words` counts for nothing then.

    Raises:
        UnknownNameError: no such share.
        InputError: more adapters than prompts or names, or none; fewer prompts than the batch has.
    """
    if share not in SHARES:
        raise UnknownNameError("share", share, SHARES)
    count = 1 if share == "identical" else adapters
    if not 1 <= count <= min(batch, len(names)):
        raise InputError(
            f"{count} distinct adapters do not go into a batch of {batch} from a pool of {len(names)}. "
            f"Give --adapters from 1 to {min(batch, len(names))}, or a larger batch."
        )
    if prompts is not None and len(prompts) < batch:
        found = len(prompts)
        raise InputError(f"A batch of {batch} needs as many prompts, got {found}. Give --batch {found}.")
    random = np.random.default_rng(seed)
    chosen = [names[i] for i in random.permutation(len(names))[:count]]
    weights = 1 / np.arange(1, count + 1) if share == "zipf" else np.ones(count)
    left = weights / weights.sum() * (batch - count)
    times = np.floor(left).astype(int)
    times[np.argsort(times - left, kind="stable")[: batch - count - times.sum()]] += 1  # largest remainders
    owners = [name for name, more in zip(chosen, times.tolist(), strict=True) for _ in range(more + 1)]
    order = random.permutation(batch)
    if prompts is None:
        prompts = [" ".join(random.choice(WORDS.split(), size=words)) for _ in range(batch)]
    return Workload(list(prompts[:batch]), [owners[i] for i in order], new_tokens)
