"""The ROCs of sites that read one input, side by side in memory: what the forms of a delta need of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.types import Rocs, Site

SPARSE = 256
"""ROCs from which the `up` of several sites is no longer one matrix, of which half or more is 0."""
Up = Callable[[Tensor], Tensor]
"""Gated z (batch, roc) -> the deltas of all sites side by side."""


class Stacked:
    """The ROCs of some sites, copied together once; of one site alone they stay where they are.

    Args:
        sites: on one device, of one dtype and width.

    Attributes:
        sites: the same, as views of what was copied.
        rocs: all of them, one site after another.
        layout: how they lie: of each site (rank, plan columns) of each run.
        lengths, widths: ROCs, and outputs, of each site.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.rocs, self.lengths, self.widths = join(sites), [len(s.owner) for s in sites], [len(s.up) for s in sites]
        self.layout = tuple(tuple((rank, *columns.tolist()) for rank, columns in site.blocks) for site in sites)
        count, ups = len(self.rocs.owner), [site.up.T for site in sites]
        self.whole: Tensor | None = None  # (roc, out): block by block on the diagonal
        if len(sites) > 1 and count <= SPARSE:
            self.whole = torch.block_diag(*ups)
            ups, roc, out = [], 0, 0
            for length, width in zip(self.lengths, self.widths, strict=True):
                ups.append(self.whole[roc : roc + length, out : out + width])
                roc, out = roc + length, out + width
        downs, sizes = self.rocs.down.split(self.lengths), self.rocs.size.split(self.lengths)
        self.sites = [
            replace(site, down=down, size=size, up=up.T)
            for site, down, size, up in zip(sites, downs, sizes, ups, strict=True)
        ]
        self.version = object()  # of what is written there
        self._typed: dict[torch.dtype, tuple[Float[Tensor, "roc in"], Up]] = {}

    def typed(self, dtype: torch.dtype) -> tuple[Float[Tensor, "roc in"], Up]:
        """`down`, and what applies `up`, in a dtype."""
        if dtype not in self._typed:
            self._typed[dtype] = self.rocs.down.to(dtype), self._up(dtype)
        return self._typed[dtype]

    def wrote(self) -> None:
        """Something was written into the sites' tensors."""
        own, self.version = self.rocs.down.dtype, object()
        self._typed = {dtype: typed for dtype, typed in self._typed.items() if dtype == own}

    def _up(self, dtype: torch.dtype) -> Up:
        if self.whole is not None:
            whole = self.whole.to(dtype)
            return lambda z: torch.mm(z, whole)
        ups, lengths = [site.up.T.to(dtype) for site in self.sites], self.lengths
        if len(ups) == 1:
            return lambda z: torch.mm(z, ups[0])

        def apart(z: Tensor) -> Tensor:
            parts = zip(z.split(lengths, 1), ups, strict=True)
            return torch.cat([torch.mm(part, up) for part, up in parts], 1)

        return apart


def join(parts: Sequence[Rocs]) -> Rocs:
    """The ROCs of several modules that read the same input, one after another."""
    if len(parts) == 1:
        return parts[0]
    down, size, owner = (torch.cat([getattr(part, name) for part in parts]) for name in ("down", "size", "owner"))
    return Rocs(down, size, owner, tuple(block for part in parts for block in part.blocks))
