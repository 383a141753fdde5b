"""Several adapters as one: concatenated along the rank axis, their factors folded into `up`.

    up_c (down_c x) = sum_i factor_i up_i (down_i x),     down_c = [down_1; down_2; ...], up_c = [factor_1 up_1, ...]

To a server that knows adapters by name every composition is another adapter, and few of them share a batch. So
factors are rounded to a grid: prompts of one kind then have the same composition, not nearly the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from hilora.errors import InputError
from hilora.gateway.parts import Part
from hilora.types import Factors

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank."""
PREFIX = "hilora-"
DIGITS = 16


@dataclass(frozen=True)
class Composition:
    """What is one adapter to another server.

    Attributes:
        parts: content hash and factor of each adapter, by content hash.
        rank: the largest that it has at any site, at most.
    """

    parts: tuple[tuple[str, float], ...]
    rank: int

    @property
    def name(self) -> str:
        """Made of its content: another version of an adapter is another name."""
        told = json.dumps([[content, f"{factor:.6g}"] for content, factor in self.parts])
        return PREFIX + hashlib.sha256(told.encode()).hexdigest()[:DIGITS]


def compose(parts: Sequence[Part], *, levels: int | None = None) -> Composition | None:
    """The composition of a prompt's adapters; None where the base model answers alone.

    Args:
        parts: adapters that are used whole; those whose factor comes to 0 on the grid are left out.
        levels: of the grid, see `on_grid`; None for factors as they are.

    Raises:
        InputError: an adapter is not used whole; levels below 1.
    """
    if any(not part.is_whole for part in parts):
        raise InputError("A composition is made of whole adapters; some ROCs of one are chosen token by token.")
    if not parts:
        return None
    factors = on_grid([part.factor for part in parts], levels)
    kept = [(part, factor) for part, factor in zip(parts, factors, strict=True) if factor]
    return Composition(tuple((part.content, factor) for part, factor in kept), sum(part.rank for part, _ in kept))


def on_grid(factors: Sequence[float], levels: int | None) -> list[float]:
    """Each factor as one of the multiples 0, 1/levels .. 1 of the largest; the sum of all stays what it was.

    Equal factors stay equal. Without levels, all stay as they are.

    Raises:
        InputError: levels below 1.
    """
    if levels is None:
        return list(factors)
    if levels < 1:
        raise InputError(f"levels of a grid of weights are 1 or more; got {levels}.")
    largest, total = max(factors), sum(factors)
    steps = [int(levels * factor / largest + 0.5) for factor in factors]
    return [total * step / sum(steps) for step in steps]


def factors_of(composition: Composition, read: Callable[[str], Factors]) -> Factors:
    """Its factors, in the dtype of its adapters' (of several, the one that holds all).

    Args:
        composition: any.
        read: gives an adapter's factors, by content hash.
    """
    each = [(read(content), factor) for content, factor in composition.parts]
    found = {}
    for site in sorted({site for factors, _ in each for site in factors}):
        here = [(*factors[site], factor) for factors, factor in each if site in factors]
        dtype = reduce(torch.promote_types, (down.dtype for down, _, _ in here))
        down = torch.cat([down.to(dtype) for down, _, _ in here])
        up = torch.cat(
            [(up.float() * factor).to(dtype) if factor != 1 else up.to(dtype) for _, up, factor in here], 1
        )
        found[site] = (down, up)
    return found


def needed_rank(rank: int) -> int:
    """The smallest max_lora_rank of vLLM's that has room for a rank.

    Raises:
        InputError: there is none.
    """
    fit = [each for each in RANKS if each >= rank]
    if not fit:
        raise InputError(f"Rank {rank} is more than vLLM takes ({RANKS[-1]}). Choose a method with fewer adapters.")
    return fit[0]
