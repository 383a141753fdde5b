"""Adapters side by side in memory, each in a slot that another one of its shape can take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch

from hilora.engine.attachment import FORMS
from hilora.types import Factors, Site

Shape = tuple[tuple[int, str], ...]
"""(rank, site) of all sites that an adapter changes; those of one shape may take each other's place."""
Placements = Mapping[str, tuple[torch.device, torch.dtype]]
"""Where modules compute."""
Sizes = Mapping[str, tuple[int, int]]
"""(in, out) of sites."""


def shape_of(factors: Factors) -> Shape:
    """(rank, site) of all sites of an adapter, in the sites' order."""
    return tuple((down.shape[0], name) for name, (down, _) in sorted(factors.items()))


class Slots:
    """Adapters laid out in a model, each in a slot of its shape.

    Args:
        form: name in `attachment.FORMS`, with `packed`.
        shapes: of each slot; slots of one shape lie side by side.
        placements: where the model's modules compute.
        sizes: (in, out) of each site.

    Attributes:
        of: content hash -> slot, the least recently used first.
        ids: of each slot, the adapter's position in its pool.
    """

    def __init__(
        self, model: Any, form: str, packed: bool, shapes: Sequence[Shape], placements: Placements, sizes: Sizes
    ) -> None:
        self.shapes, self.of, self.ids = shapes, OrderedDict[str, int](), [0] * len(shapes)
        self.starts: list[list[int]] = [[] for _ in shapes]
        sites = {}
        for name, (width, height) in sizes.items():
            ranks = [(slot, rank) for slot, shape in enumerate(shapes) for rank, site in shape if site == name]
            count = 0
            for slot, rank in ranks:
                self.starts[slot].append(count)
                count += rank
            where, dtype = placements[name]
            runs = [(rank, [slot for slot, _ in run]) for rank, run in groupby(ranks, key=itemgetter(1))]
            sites[name] = Site(
                down=torch.zeros(count, width, dtype=dtype, device=where),
                size=torch.zeros(count, dtype=dtype, device=where),
                owner=torch.tensor([slot for slot, rank in ranks for _ in range(rank)], device=where),
                blocks=tuple((rank, torch.tensor(slots, device=where)) for rank, slots in runs),
                name=name,
                up=torch.zeros(height, count, dtype=dtype, device=where),
            )
        self.form = FORMS[form](model, sites, packed)

    def write(self, content: str, factors: Factors, slot: int) -> None:
        """Put an adapter into a slot of its shape; who was there is gone."""
        for (rank, name), start in zip(self.shapes[slot], self.starts[slot], strict=True):
            site, rows, (down, up) = self.form.sites[name], slice(start, start + rank), factors[name]
            site.down[rows], site.up[:, rows] = down, up
            site.size[rows] = site.up[:, rows].norm(dim=0)
        self.form.wrote()
        self.of = OrderedDict((other, at) for other, at in self.of.items() if at != slot)
        self.of[content] = slot

    def place(self, shapes: Mapping[str, Shape], stays: Set[str]) -> dict[str, int] | None:
        """A slot for each of some adapters, none of which is that of one that stays; None if there are too few."""
        held = {slot: content for content, slot in self.of.items() if content in stays}
        oldest = {slot: age for age, slot in enumerate(self.of.values())}
        free = sorted(set(range(len(self.shapes))) - set(held), key=lambda slot: oldest.get(slot, -1))
        found: dict[str, int] = {}
        for content, shape in shapes.items():
            slot = next((slot for slot in free if self.shapes[slot] == shape), None)
            if slot is None:
                return None
            free.remove(slot)
            found[content] = slot
        return found
