"""Adapters side by side in memory, each in a slot that another one of its shape can take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from hilora.compose.stack import stack_sites
from hilora.engine.attachment import FORMS
from hilora.types import Factors, Site

Shape = tuple[tuple[int, str], ...]
"""(rank, site) of all sites that an adapter changes; those of one shape may take each other's place."""
Placements = Mapping[str, tuple[torch.device, torch.dtype]]
"""Where modules compute."""
Written = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""`down`, `up` and `size` of a slot at a site, and what `down` and `up` become."""


def shape_of(factors: Factors) -> Shape:
    """(rank, site) of all sites of an adapter, in the sites' order."""
    return tuple((down.shape[0], name) for name, (down, _) in sorted(factors.items()))


class Slots:
    """Adapters laid out in a model, each in a slot of its shape.

    Args:
        form: name in `attachment.FORMS`, with `packed` and `alone`.
        adapters: content hash -> factors.
        spare: for one of each shape, so many further slots, which hold nothing yet.
        placements: where the model's modules compute.

    Attributes:
        shapes: of each slot.
        of: content hash -> slot, the least recently used first.
        ids: of each slot, the adapter's position in its pool.
    """

    def __init__(
        self,
        model: Any,
        form: str,
        packed: bool,
        adapters: Mapping[str, Factors],
        spare: Mapping[str, int],
        placements: Placements,
        alone: bool = False,
    ) -> None:
        empty = [(None, _zeros(adapters[content])) for content, count in spare.items() for _ in range(count)]
        held = sorted([*adapters.items(), *empty], key=lambda each: shape_of(each[1]))
        self.shapes = [shape_of(factors) for _, factors in held]
        self.of = OrderedDict((content, slot) for slot, (content, _) in enumerate(held) if content is not None)
        self.ids = [0] * len(held)
        sites = stack_sites([factors for _, factors in held], placements)
        self._starts = {name: _starts(site) for name, site in sites.items()}
        self.form = FORMS[form](model, sites, packed, **({"alone": True} if alone else {}))

    def fill(self, adapters: Mapping[str, Factors], stays: Set[str]) -> set[str] | None:
        """Put adapters into slots of their shapes, none of which is that of one that stays.

        Returns:
            Whose slots were taken; None if there are too few, and nothing was done.
        """
        places = self._place({content: shape_of(factors) for content, factors in adapters.items()}, stays)
        if places is None:
            return None
        gone = {content for content, slot in self.of.items() if slot in places.values()}
        for content in gone:
            del self.of[content]
        for content, slot in places.items():
            self._write(adapters[content], slot)
            self.of[content] = slot
        if places:
            self.form.wrote()
        return gone

    def factors(self, content: str) -> Factors:
        """An adapter's factors as they lie here: others may have taken them out of memory, or off the disk."""
        slot, found = self.of[content], Factors()
        for rank, name in self.shapes[slot]:
            start, site = self._starts[name][slot], self.form.sites[name]
            found[name] = site.down[start : start + rank].clone(), site.up[:, start : start + rank].clone()
        return found

    def _write(self, factors: Factors, slot: int) -> None:
        on_cards: list[Written] = []
        for rank, name in self.shapes[slot]:
            start, site, (down, up) = self._starts[name][slot], self.form.sites[name], factors[name]
            rows = slice(start, start + rank)
            if site.down.device.type == "cpu":
                site.down[rows], site.up[:, rows] = down, up
                site.size[rows] = site.up[:, rows].norm(dim=0)
            else:
                on_cards.append((site.down[rows], site.up[:, rows], site.size[rows], down, up))
        write_at_once(on_cards)

    def _place(self, shapes: Mapping[str, Shape], stays: Set[str]) -> dict[str, int] | None:
        """A slot for each of some adapters, the least recently used first; None if there are too few."""
        oldest = {slot: age for age, slot in enumerate(self.of.values())}
        free = set(range(len(self.shapes))) - {slot for content, slot in self.of.items() if content in stays}
        left, found = sorted(free, key=lambda slot: oldest.get(slot, -1)), dict[str, int]()
        for content, shape in shapes.items():
            slot = next((slot for slot in left if self.shapes[slot] == shape), None)
            if slot is None:
                return None
            left.remove(slot)
            found[content] = slot
        return found


def write_at_once(sites: Sequence[Written]) -> None:
    """Write an adapter's factors at some sites by a few calls: to start hundreds takes a card longer than they do."""
    if not sites:
        return
    downs, ups, _, new_downs, new_ups = (list(each) for each in zip(*sites, strict=True))
    torch._foreach_copy_([*downs, *ups], [*new_downs, *new_ups])
    alike: dict[Any, list[Written]] = {}
    for site in sites:
        alike.setdefault((site[1].shape, site[1].dtype, site[1].device), []).append(site)
    for some in alike.values():
        sizes = torch.stack([up for _, up, *_ in some]).norm(dim=1)  # (site, roc)
        torch._foreach_copy_([size for _, _, size, *_ in some], list(sizes))


def _zeros(factors: Factors) -> Factors:
    return {name: (torch.zeros_like(down), torch.zeros_like(up)) for name, (down, up) in factors.items()}


def _starts(site: Site) -> dict[int, int]:
    """Slot -> its first ROC at a site."""
    starts, count = dict[int, int](), 0
    for rank, slots in site.blocks:
        for slot in slots.tolist():
            starts[slot] = count
            count += rank
    return starts
