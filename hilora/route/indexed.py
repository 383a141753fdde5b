"""The search that asks an index of short codes first (faiss), and scores only the adapters that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.errors import HiloraError
from hilora.route.scored import SLACK, Found, Scored, empty, everyone

LEFT = 8
"""Where fewer than so many times k of those that an index named may be used, all that may are scored."""
TRAINED_ON = 100_000
"""Means that an index is trained on, of all evenly; also those that are added to it at once."""


@dataclass(frozen=True)
class Form:
    """How an index is made.

    Attributes:
        codes: numbers that it keeps of a mean, 4 bits each: its coordinates of largest variance, one for the rest.
        reranked: adapters that are scored after it has been asked.
        halves: whether it is cut into two, which are searched side by side.
    """

    codes: int
    reranked: int
    halves: bool


WHOLE, HALVES = Form(128, 128, False), Form(64, 1536, True)
"""Shorter codes take half the time to read, and more adapters have to be scored after them."""
WHOLE_UP_TO = 100_000
"""Adapters up to which an index is whole."""


class Indexed:
    """Asks an index of short codes first.

    Args:
        means: whitened means, fp32; may be memory-mapped: once the index is built, only those to be scored are read.
        offset: what else counts for each adapter.

    Raises:
        HiloraError: faiss is not installed.
    """

    def __init__(self, means: Float[Tensor, "adapter dim"], offset: Float[Tensor, " adapter"] | None = None) -> None:
        self.means, self.offset = means, offset
        self.form = WHOLE if len(means) <= WHOLE_UP_TO else HALVES
        self.scored = Scored(means, offset)
        some = means[:: max(1, len(means) // TRAINED_ON)].double()
        axes = torch.linalg.eigh(torch.cov(some.T)).eigenvectors
        self.axes = axes.flip(1)[:, : self.form.codes - 1].float()  # (dim, coordinate)
        # |w - m|^2 - 2 o is a squared distance once each mean has one more coordinate, which prompts have at 0
        self.most = 0.0 if offset is None else float(offset.max())
        self.index = self._build()

    def _codes(self, part: slice) -> Any:
        means = self.means[part]
        head = means @ self.axes
        rest = (means.square().sum(1) - head.square().sum(1)).clamp_min(0)
        if self.offset is not None:
            rest = rest + 2 * (self.most - self.offset[part].float())
        return self._padded(head, rest.sqrt())

    def _build(self) -> Any:
        faiss, codes, count = need_faiss(), self.form.codes, len(self.means)
        training = self._codes(slice(None, None, max(1, count // TRAINED_ON)))
        middle = count // 2 if self.form.halves else count
        self.parts = []  # faiss does not keep them alive
        for first, last in ((0, middle), (middle, count)):
            if first < last:
                part = faiss.IndexPQFastScan(codes, codes, 4)
                part.train(training)
                for a in range(first, last, TRAINED_ON):
                    part.add(self._codes(slice(a, min(a + TRAINED_ON, last))))
                self.parts.append(part)
        if len(self.parts) == 1:
            return self.parts[0]
        both = faiss.IndexShards(codes, True, True)
        for part in self.parts:
            both.add_shard(part)
        return both

    def _padded(self, head: Tensor, last: Tensor) -> Any:
        """(row, codes) in numpy: coordinates, zeros where there are fewer, and the last one."""
        out = torch.zeros(len(head), self.form.codes)
        out[:, : head.shape[1]], out[:, -1] = head, last
        return out.numpy()

    def top(self, white: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]) -> Found:
        """The k best allowed adapters of each row (all, if there are fewer), but for what the index misses."""
        k = min(k, len(self.scored))
        number = min(max(self.form.reranked, 4 * k), len(self.scored))
        asked = self._padded(white.float() @ self.axes, torch.zeros(len(white)))
        near = self.index.search(asked, number)[1]
        scores, ids = empty(len(white), k)
        every = everyone(allowed)
        for row, own in enumerate(white.double().numpy()):
            some = near[row]
            if not every:
                may = allowed[row].numpy()
                some = some[may[some]]
                if len(some) < min(LEFT * k, int(may.sum())):  # a mask that leaves little of what the index names
                    some = may.nonzero()[0]
            self.scored.best(own, self.scored.roughly(own, some, k + SLACK), scores[row], ids[row])
        return torch.from_numpy(scores), torch.from_numpy(ids)


def need_faiss() -> Any:
    """The package.

    Raises:
        HiloraError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise HiloraError("search='indexed' needs faiss: pip install 'hilora[index]'") from error
    return faiss
