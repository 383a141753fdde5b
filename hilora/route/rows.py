"""What a model knows of each adapter, as rows: made for newcomers under what all share, taken from several models.

`of` gives the same model of other adapters; `gather` gives some rows of some models that share all else; `some` gives
the scores of some rows for one text, without a look at the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.dual import DualGaussian
from hilora.route.features import Features
from hilora.route.gaussian import OwnGaussian
from hilora.route.phrases import some_phrases
from hilora.route.tied import DERIVED, TiedGaussian
from hilora.route.witnesses import Meaning, Outline, Phrases, Spelling, count_phrases, noise, terms_of

Rows = Int[Tensor, " kept"]


@dataclass(frozen=True)
class Kind:
    """How the rows of one class of models are made and taken."""

    size: Callable[[Any], int]
    of: Callable[[Any, Sequence[Features]], Any]
    gather: Callable[[Sequence[Any], Rows], Any]
    some: Callable[[Any, Features, Rows], Tensor]


def taken(parts: Sequence[Tensor], rows: Rows) -> Tensor:
    """Rows of some tables, one after another."""
    return torch.index_select(parts[0] if len(parts) == 1 else torch.cat(list(parts)), 0, rows)


def own_of(model: OwnGaussian, samples: Sequence[Features]) -> OwnGaussian:
    """Own covariances: each adapter has its own, under the ridge and the volume that all share."""
    with one_thread():
        return OwnGaussian(model.ridge).fit([own.embeddings for own in samples], model.volume_)


def own_gather(parts: Sequence[OwnGaussian], rows: Rows) -> OwnGaussian:
    """Own covariances of some adapters."""
    made = copy(parts[0])
    for name in ("mean_", "precision_", "log_det_"):
        setattr(made, name, taken([getattr(part, name) for part in parts], rows))
    starts = torch.tensor([0, *(len(part.mean_) for part in parts)]).cumsum(0)
    owner = torch.cat([part.owner_ + start for part, start in zip(parts, starts, strict=False)])
    moved = torch.full((int(starts[-1]),), -1)
    moved[rows] = torch.arange(len(rows))
    kept = (moved[owner] >= 0).nonzero()[:, 0]
    made.owner_ = moved[owner[kept]]
    for name in ("directions_", "gain_", "offset_"):
        setattr(made, name, taken([getattr(part, name) for part in parts], kept))
    return made


def gaussian_of(model: TiedGaussian | DualGaussian, samples: Iterable[Tensor]) -> TiedGaussian | DualGaussian:
    """Gaussians with the same covariance around other means."""
    made = copy(model)
    means = torch.stack([own.double().mean(0) for own in samples])
    if isinstance(made, TiedGaussian):
        made.mean_ = (means @ made.whitening_.double()).float()
        _forget(made)
    else:
        made.mean_, made.white_mean_ = means, means @ made.whitening_.T
    return made


def gaussian_gather(parts: Sequence[Any], rows: Rows) -> Any:
    """Gaussians of some adapters."""
    made = copy(parts[0])
    for name in ("mean_",) if isinstance(made, TiedGaussian) else ("mean_", "white_mean_"):
        setattr(made, name, taken([getattr(part, name) for part in parts], rows))
    _forget(made)
    return made


def _forget(model: Any) -> None:
    for name in DERIVED:
        model.__dict__.pop(name, None)


def _meaning_of(model: Meaning, samples: Sequence[Features]) -> Meaning:
    made = copy(model)
    made.model_ = gaussian_of(model.model_, (own.embeddings for own in samples))  # type: ignore[assignment]
    made.noise_ = noise(model.model_, samples)
    return made


def _spelling_of(model: Spelling, samples: Sequence[Features]) -> Spelling:
    made = copy(model)
    made.model_ = gaussian_of(model.model_, (model.vectors(terms_of(own).characters) for own in samples))
    made.noise_ = noise(model.model_, samples)
    return made


def _gather_noisy(parts: Sequence[Any], rows: Rows) -> Any:
    made = copy(parts[0])
    made.model_ = gaussian_gather([part.model_ for part in parts], rows)
    made.noise_ = taken([part.noise_ for part in parts], rows)
    return made


def _some(model: Any, text: Features, rows: Rows) -> Tensor:
    found: Tensor = _gather_noisy([model], rows).score(text)[0]
    return found


def _some_spellings(model: Spelling, text: Features, rows: Rows) -> Tensor:
    if not isinstance(model.model_, TiedGaussian):
        return _some(model, text, rows)
    (vector,) = model.vectors(terms_of(text).characters)
    return model.model_.near(vector, rows) * len(vector) + model.noise_[rows]


def _phrases_of(model: Phrases, samples: Sequence[Features]) -> Phrases:
    """Phrases of newcomers, as common as all know them to be, and at least as common as the newcomer makes them."""
    assert model.known_ is not None
    assert model.total_ is not None
    made = copy(model)
    made.vocabulary_, made.start_, phrase, made.adapter_, used, sizes = count_phrases(samples, model.listed)
    words = made.vocabulary_
    place = torch.searchsorted(model.known_, words)
    common = torch.cat([model.total_, torch.zeros(1)])  # of what comes after all ids: nobody's
    known = torch.cat([model.known_, torch.tensor([-1])])
    total = torch.where(known[place] == words, common[place], 0)[phrase]
    count = torch.maximum(sizes, torch.tensor(model.count_))[made.adapter_]
    share = (torch.maximum(total, used) + 0.5) / (count + 1)
    made.gain_ = torch.log1p(used / (model.strength * share))
    made.absent_ = torch.log(model.strength / (sizes + model.strength))
    made.common_ = None
    return made


def _gather_phrases(parts: Sequence[Phrases], rows: Rows) -> Phrases:
    made = copy(parts[0])
    made.absent_ = taken([part.absent_ for part in parts], rows)
    starts = torch.tensor([0, *(len(part.absent_) for part in parts)]).cumsum(0)
    moved = torch.full((int(starts[-1]),), -1)
    moved[rows] = torch.arange(len(rows))
    phrase = owner = torch.empty(0, dtype=torch.long)
    gain = torch.empty(0)
    for part, start in zip(parts, starts, strict=False):
        columns = part.vocabulary_.repeat_interleave(part.start_.diff()), moved[part.adapter_ + start], part.gain_
        if len(rows) < int(starts[-1]):
            kept = (columns[1] >= 0).nonzero()[:, 0]
            columns = columns[0][kept], columns[1][kept], columns[2][kept]
        phrase, owner, gain = _merged((phrase, owner, gain), columns)
    made.vocabulary_, sizes = torch.unique_consecutive(phrase, return_counts=True)
    made.start_ = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    made.adapter_, made.gain_, made.common_ = owner, gain, None
    return made


def _merged(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Columns of two tables in one, by the first, which ascends in both; without a sort, for one may be long."""
    if not len(one[0]):
        return tuple(other)
    places = torch.searchsorted(one[0], other[0], right=True) + torch.arange(len(other[0]))
    mine = torch.ones(len(one[0]) + len(other[0]), dtype=torch.bool)
    mine[places] = False
    found = []
    for left, right in zip(one, other, strict=True):
        column = left.new_empty(len(mine))
        column[mine], column[places] = left, right
        found.append(column)
    return tuple(found)


_LISTED = Kind(lambda model: len(model.absent_), _phrases_of, _gather_phrases, some_phrases)
KINDS: Mapping[type, Kind] = {
    OwnGaussian: Kind(lambda model: len(model.mean_), own_of, own_gather, _some),
    Meaning: Kind(lambda model: len(model.noise_), _meaning_of, _gather_noisy, _some),
    Spelling: Kind(lambda model: len(model.noise_), _spelling_of, _gather_noisy, _some_spellings),
    Phrases: _LISTED,
    Outline: _LISTED,
}
"""Class of a model -> how its rows are made and taken."""
