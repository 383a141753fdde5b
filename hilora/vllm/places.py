"""What a step's tokens use, in buffers that stay where they are: which slots, and how much of each.

A token has up to K places, one for each adapter of its composition. The buffers are filled before each step; what the
step launches reads them, captured graphs as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hilora.engine.kernels.top_rocs import CRITERIA
from hilora.vllm.wire import Composition

Row = tuple[Composition | None, int]
"""What a request uses, and how many tokens of it are in the step."""


@dataclass(frozen=True)
class Group:
    """The tokens that have one adapter in one place."""

    place: int
    slot: int
    tokens: Tensor


class Places:
    """Buffers for a number of tokens and places.

    Args:
        num_places: adapters of a composition, at most.
        num_tokens: of a step, at most.
        device: where they lie.

    Attributes:
        slot, rocs, rank, factor: (place, token), as `gate.gate` reads them.
        criterion: (token,)
        used: places that some token of the step uses; 0 where none does.
        groups: the same, adapter by adapter; for devices that work them out one after the other.
    """

    def __init__(self, num_places: int, num_tokens: int, device: torch.device | str = "cpu") -> None:
        shape = num_places, num_tokens
        self.slot = torch.full(shape, -1, dtype=torch.long, device=device)
        self.rocs = torch.zeros(shape, dtype=torch.long, device=device)
        self.rank = torch.ones(shape, dtype=torch.long, device=device)
        self.factor = torch.zeros(shape, dtype=torch.float32, device=device)
        self.criterion = torch.zeros(num_tokens, dtype=torch.long, device=device)
        self.used = 0
        self.groups: list[Group] = []

    @property
    def num_places(self) -> int:
        """As many as there are."""
        return len(self.slot)

    def fill(self, rows: Sequence[Row], slots: Mapping[str, int]) -> None:
        """Write down what the rows of the next step use; tokens behind them use nothing.

        Args:
            rows: in the step's order; None in a row for one that uses no composition.
            slots: content -> where it lies.
        """
        before, self.used, self.groups = self.used, max((len(c.parts) for c, _ in rows if c), default=0), []
        if not (self.used or before):
            return
        counts = np.array([count for _, count in rows], dtype=np.int64)
        whole = np.zeros((4, self.num_places, len(rows)))
        whole[0], whole[2] = -1, 1
        criterion = np.zeros(len(rows), dtype=np.int64)
        lies: dict[tuple[int, str], list[np.ndarray]] = {}
        starts = counts.cumsum() - counts
        for row, (composition, count) in enumerate(rows):
            if composition is None:
                continue
            criterion[row] = CRITERIA.index(composition.criterion)
            for place, part in enumerate(composition.parts):
                whole[:, place, row] = slots[part.content], part.rocs, part.rank, part.factor
                lies.setdefault((place, part.content), []).append(np.arange(starts[row], starts[row] + count))
        for buffer, values in zip((self.slot, self.rocs, self.rank, self.factor), whole, strict=True):
            _write(buffer, np.repeat(values, counts, axis=1))
        self.slot[:, counts.sum() :] = -1
        _write(self.criterion[None], np.repeat(criterion, counts)[None])
        self.groups = [
            Group(place, slots[content], torch.from_numpy(np.concatenate(tokens)).to(self.slot.device))
            for (place, content), tokens in lies.items()
        ]


def _write(buffer: Tensor, values: np.ndarray) -> None:
    buffer[:, : values.shape[1]].copy_(torch.from_numpy(values))


class Grouped:
    """Works places out adapter by adapter, by plain products: for the CPU."""

    def __init__(self, places: Places) -> None:
        self.places = places

    @property
    def num_places(self) -> int:
        """Places that are to be worked out in this step."""
        return self.places.used

    def fill(self, rows: Sequence[Row], numbers: Sequence[int | None], slots: Mapping[str, int]) -> None:
        """Take in the next step (`Places.fill`)."""
        self.places.fill(rows, slots)

    def shrink(self, x: Tensor, down: Sequence[Tensor]) -> Tensor:
        """A x of each place.

        Args:
            x: (token, in)
            down: of each site that reads x, (slot, 1, roc, in)

        Returns:
            (place, site, token, roc), fp32; 0 where a token has no adapter.
        """
        z = x.new_zeros(self.num_places, len(down), len(x), down[0].shape[2], dtype=torch.float32)
        for group in self.places.groups:
            own = x[group.tokens].float()
            for site, weights in enumerate(down):
                z[group.place, site, group.tokens] = own @ weights[group.slot, 0].float().T
        return z

    def expand(self, y: Tensor, z: Tensor, up: Sequence[Tensor], widths: Sequence[int], first: int) -> None:
        """Add B z of each place to y (token, out).

        Args:
            y: of all sites, side by side.
            z: gated.
            up: of each site, (slot, 1, out, roc)
            widths: of the sites in y.
            first: column of the first of them.
        """
        for group in self.places.groups:
            begin = first
            for site, (weights, width) in enumerate(zip(up, widths, strict=True)):
                added = z[group.place, site, group.tokens] @ weights[group.slot, 0].float().T
                y.narrow(1, begin, width).index_add_(0, group.tokens, added.to(y.dtype))
                begin += width
