"""Phrases of one text, looked for in the samples of some adapters out of many.

A list says who uses a phrase. A short one is read; in a long one each of the adapters is searched; what one adapter
in `SHARE` uses is looked up in a table of all of them, made for it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hilora.route.features import Features, spans
from hilora.route.witnesses import Phrases, terms_of

LONG = 8
"""A list of so many times as many adapters as are looked for is searched."""
SHARE = 8
"""Tables of phrases that fewer use would need more room than their lists."""
FINE = 2.0**32
"""Parts of 1 that gains are summed in; those of the longest text sum to what fp64 counts exactly."""

Floats = NDArray[np.float64]


class Common(NamedTuple):
    """Phrases that many adapters use.

    Attributes:
        places: of these phrases in the vocabulary, ascending.
        gains: of each adapter; 0 where it does not use the phrase.
    """

    places: Int[Tensor, " common"]
    gains: Float[Tensor, "common adapter"]

    @classmethod
    def of(cls, model: Phrases) -> Common:
        """Those of a fitted model."""
        sizes = model.start_.diff()
        places = (sizes > max(1, len(model.absent_) // SHARE)).nonzero()[:, 0]
        entries = spans(model.start_[places], sizes[places])
        gains = torch.zeros(len(places), len(model.absent_))
        gains[torch.arange(len(places)).repeat_interleave(sizes[places]), model.adapter_[entries]] = model.gain_[
            entries
        ]
        return cls(places, gains)


def some_phrases(model: Phrases, text: Features, rows: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """Scores of some adapters for one text, as `Phrases.score` has them."""
    asked, _, number = model.asked(terms_of(text), 1)
    some, back = np.unique(rows.numpy(), return_inverse=True)
    if model.common_ is None:
        found, places = np.zeros(len(some)), asked.numpy()
    else:
        found, places = _common(model.common_, asked.numpy(), some)
    found += _listed(model, places, some)
    found = found / FINE + int(number) * model.absent_.numpy()[some]
    return torch.from_numpy(found[back]).float()


def _common(common: Common, asked: NDArray[np.int64], some: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Summed gains of phrases that many use; places of the others."""
    held = common.places.numpy()
    at = np.minimum(np.searchsorted(held, asked), max(len(held) - 1, 0))
    is_common = held[at] == asked if len(held) else np.zeros(len(asked), dtype=bool)
    gains = common.gains.numpy()[at[is_common][:, None], some]
    return _whole(gains).sum(0), asked[~is_common]


def _listed(model: Phrases, places: NDArray[np.int64], some: NDArray[np.int64]) -> Floats:
    """Summed gains by the lists of these phrases."""
    who, gains, bounds = model.adapter_.numpy(), model.gain_.numpy(), model.start_.numpy()
    starts, ends = bounds[places], bounds[places + 1]
    few = ends - starts <= LONG * len(some)
    entries = spans(torch.from_numpy(starts[few]), torch.from_numpy((ends - starts)[few])).numpy()
    column = np.full(len(model.absent_), -1)
    column[some] = np.arange(len(some))
    at = column[who[entries]]
    hit = at >= 0
    columns, found = [at[hit]], [entries[hit]]
    for start, end in zip(starts[~few].tolist(), ends[~few].tolist(), strict=True):
        at = start + np.minimum(np.searchsorted(who[start:end], some), end - start - 1)
        hit = who[at] == some
        columns.append(hit.nonzero()[0])
        found.append(at[hit])
    return np.bincount(np.concatenate(columns), _whole(gains[np.concatenate(found)]), len(some)).astype(np.float64)


def _whole(gains: NDArray[np.float32]) -> Floats:
    """Whole numbers, whose sums are exact in any order: the order depends on who else is in the pool."""
    return np.rint(gains.astype(np.float64) * FINE)
