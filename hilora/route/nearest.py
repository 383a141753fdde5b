"""The best of very many adapters under a tied Gaussian, without a score for each in full.

With w the whitened prompt, m_i the whitened mean of adapter i and o_i what else counts for it, log-likelihoods differ
between adapters by

    s_i = w . m_i - |m_i|^2 / 2 + o_i.

Both searches find a few adapters by rough numbers and score those in fp64, so that a row's scores do not depend on
who else is in its batch or beside it in the pool, and equal ones keep the pool's order.

    Exact     rough: fp32 matrix product. What rounding could have pushed out is looked at again: always the best.
    Indexed   rough: 4-bit codes of the means (faiss), 32 or 64 bytes an adapter beside the means. The best are missed
              now and then: `benchmarks/selection.py` says how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hilora.errors import HiloraError

SLACK = 16
"""Adapters beyond the best k that are scored in fp64."""
ROUGH_AT_ONCE = 2**25
"""Rough numbers that are held at once."""
INDEX_FROM = 2000
"""Adapters from which on an index pays."""
LEFT = 8
"""Where fewer than so many times k of those that an index named may be used, all that may are scored."""
TRAINED_ON = 100_000

ROUGH_FROM = 200
"""More adapters than that are first scored in fp32."""


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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Found = tuple[Float[Tensor, "batch found"], Int[Tensor, "batch found"]]
"""fp64 scores, best first, -inf where nothing is allowed; positions."""


@runtime_checkable
class Nearest(Protocol):
    """A search for the best adapters."""

    def top(self, white: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]) -> Found:
        """The k best allowed adapters of each row (all, if there are fewer)."""
        ...


class Exact:
    """Looks at every adapter.

    Args:
        means: whitened means, fp32.
        offset: what else counts for each adapter.
    """

    def __init__(self, means: Float[Tensor, "adapter dim"], offset: Float[Tensor, " adapter"] | None = None) -> None:
        self.scored = _Scored(means, offset)
        self.rough_constant = self.scored.constant.astype(np.float32)
        # |fp32 dot - dot| <= gamma |w| |m|, gamma = dim u / (1 - dim u); constants and sums round once more each
        eps = float(np.finfo(np.float32).eps)
        self.rounding = 2 * means.shape[1] * eps * self.scored.longest
        self.constant_rounding = 4 * eps * float(np.abs(self.scored.constant).max(initial=0.0))

    def top(self, white: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]) -> Found:
        """The k best allowed adapters of each row (all, if there are fewer)."""
        k = min(k, len(self.scored))
        scores, ids = empty(len(white), k)
        rows = max(1, ROUGH_AT_ONCE // max(1, len(self.scored)))
        for start in range(0, len(white), rows):
            part = slice(start, start + rows)
            self._top(white[part].double().numpy(), allowed[part], scores[part], ids[part])
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def _top(self, white: Floats, allowed: Tensor, scores: Floats, ids: Ints) -> None:
        """Put the best of each row into `scores` and `ids`."""
        k, count = scores.shape[1], min(scores.shape[1] + SLACK, len(self.scored))
        asked, means = white.astype(np.float32), self.scored.means
        roughs = (means @ asked[0])[None] if len(asked) == 1 else asked @ means.T  # one row: half the time
        roughs += self.rough_constant
        if not everyone(allowed):
            roughs[~allowed.numpy()] = -np.inf
        for row, (own, rough) in enumerate(zip(white, roughs, strict=True)):
            some = np.argpartition(rough, -count)[-count:] if count < len(rough) else np.arange(count)
            values = rough[some]
            if 0 < k < count < len(rough):
                doubt = 2 * (np.sqrt(own @ own) * self.rounding + self.constant_rounding)
                last = np.partition(values, -k)[-k]
                if np.isfinite(last) and last - values.min() <= doubt:  # more are alike
                    some = np.flatnonzero(rough >= last - doubt)
                    values = rough[some]
            self.scored.best(own, some[values > -np.inf], scores[row], ids[row])


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
        self.scored = _Scored(means, offset)
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


class _Scored:
    """Means that a few at a time are scored, in numpy: on so few numbers PyTorch's calls cost more than the work."""

    def __init__(self, means: Tensor, offset: Tensor | None) -> None:
        self.table, self.means = means, means.numpy()
        self.constant: Floats = np.empty(len(means))
        self.longest = 0.0
        for start in range(0, len(means), TRAINED_ON):
            part = slice(start, start + TRAINED_ON)
            squares = np.square(self.means[part].astype(np.float64)).sum(1)
            self.constant[part] = -squares / 2
            self.longest = max(self.longest, float(np.sqrt(squares.max())))
        if offset is not None:
            self.constant += offset.double().numpy()

    def __len__(self) -> int:
        return len(self.means)

    def roughly(self, own: Floats, some: Ints, count: int) -> Ints:
        """The best so many of some adapters for one row, in fp32."""
        if len(some) <= max(count, ROUGH_FROM):
            return some
        means = self.table.index_select(0, torch.from_numpy(some))  # they lie far apart: both cores fetch them
        rough = (means @ torch.from_numpy(own.astype(np.float32))).numpy() + self.constant[some]
        return some[np.argpartition(-rough, count)[:count]]

    def best(self, own: Floats, some: Ints, scores: Floats, ids: Ints) -> None:
        """The best of some adapters for one row, in fp64; of equal ones the earlier in the pool comes first."""
        some = np.sort(some)
        # a product and a sum, not a matrix product: an adapter's score must not depend on who is scored beside it
        found = (self.means[some] * own).sum(1) + self.constant[some]
        order = np.argsort(-found, kind="stable")[: len(scores)]
        scores[: len(order)], ids[: len(order)] = found[order], some[order]


def everyone(allowed: Bool[Tensor, "batch adapter"]) -> bool:
    """Whether every row may use every adapter; one row that stands for all is looked at once."""
    return bool((allowed[:1] if allowed.stride(0) == 0 else allowed).numpy().all())


def empty(rows: int, k: int) -> tuple[Floats, Ints]:
    """Scores and positions where nothing is found yet."""
    return np.full((rows, k), -np.inf), np.zeros((rows, k), dtype=np.int64)


SEARCHES: dict[str, type[Exact] | type[Indexed]] = {"exact": Exact, "indexed": Indexed}


def make_search(
    name: str, means: Float[Tensor, "adapter dim"], offset: Float[Tensor, " adapter"] | None = None
) -> Nearest:
    """A search by its name; pools too small for an index are searched without one."""
    kind = SEARCHES[name]
    return Exact(means, offset) if len(means) < INDEX_FROM else kind(means, offset)


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
