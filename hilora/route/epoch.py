"""What all adapters of a pool share, learned once and left as it is while adapters come and go.

Shared are the ridge, the covariances, how rare an n-gram is and how common a phrase, the witnesses' weights, the
surprises and the threshold of "seen". Under an epoch an adapter's numbers depend on its own samples alone, so a route
is a function of the epoch and of the adapters that the row may use: who else is in the pool, and in which order they
came, changes nothing.

How far the best adapter leads (`novelty`) needs a mean over many adapters, which others' must not move. So an epoch
keeps the mean of those that it was learned from, as an adapter of its own: log-likelihoods are sums, so that the mean
over adapters i of what a witness says,

    mean_i -|w - m_i|^2 / 2 = -|w - m|^2 / 2 - mean_i |m_i - m|^2 / 2        m = mean_i m_i     (Gaussians, whitened)
    mean_i sum_t g_it       = sum_t mean_i g_it                                                 (phrases),

is what one adapter with the mean's numbers says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.errors import InputError
from hilora.route.experts import Calibration, Experts, calibrate
from hilora.route.features import Features
from hilora.route.gaussian import MIN_SAMPLES
from hilora.route.kept import LISTS, WITNESSES, tensors_of, witness_of
from hilora.route.ridge import choose_ridge
from hilora.route.tied import DERIVED, TiedGaussian, means_and_covariance
from hilora.route.witnesses import Phrases, Witness, count_phrases

VERSION = 1
"""Of what an epoch's numbers mean; to be raised with every change to it."""


@dataclass(frozen=True)
class Epoch:
    """What all adapters of a pool share.

    Attributes:
        key: names it, and depends on all that it holds.
        ridge: of the own-covariance Gaussian.
        dim: of the embeddings.
        covariance: of samples around the means of the adapters that it was learned from.
        spreads: variances along the principal directions of the samples of each adapter that it was learned from.
        owners: whose those are.
        calibration: of the scores of `experts`; `plain`: of those by meaning alone.
        share: of the adapters that it was learned from, those whose terms are kept.
        witnesses: each knows one adapter, the mean of those.
    """

    key: str
    ridge: float
    dim: int
    covariance: Float[Tensor, "dim dim"]
    spreads: Float[Tensor, " direction"]
    owners: Int[Tensor, " direction"]
    calibration: Calibration
    plain: Calibration
    share: float
    witnesses: Mapping[str, Witness]

    def volume(self, ridge: float) -> float:
        """The median log determinant of own covariances under a ridge; NaN where no adapter had enough samples."""
        if not len(self.owners):
            return math.nan
        own = torch.zeros(int(self.owners.max()) + 1, dtype=torch.float64)
        own.index_add_(0, self.owners, torch.log1p(self.spreads / ridge))
        return float((own + self.dim * math.log(ridge)).median())

    @classmethod
    def of(cls, key: str, kept: Mapping[str, Tensor]) -> Epoch:
        """Inverse of `learn_epoch`.

        Raises:
            KeyError, ValueError: something is missing, or of another version.
        """
        if int(kept["version"]) != VERSION:
            raise ValueError(f"an epoch of version {int(kept['version'])}, this version reads {VERSION}")
        names = [name for name in WITNESSES if f"{name}|noise_" in kept or f"{name}|gain_" in kept]
        whole = _whole(kept)
        witnesses = {name: witness_of(name, whole) for name in names}
        for name, witness in witnesses.items():
            if isinstance(witness, Phrases):
                witness.known_, witness.total_ = witness.vocabulary_, kept[f"{name}|total_"].clone()
                witness.count_ = int(kept[f"{name}|count_"])
        return cls(
            key,
            float(kept["ridge"]),
            int(kept["dim"]),
            kept["covariance"].clone(),
            kept["spreads"].clone(),
            kept["owners"].long(),
            _calibration("calibration", kept),
            _calibration("plain", kept),
            float(kept["share"]),
            witnesses,
        )


def learn_epoch(samples: Sequence[Features]) -> dict[str, Tensor]:
    """Learn what adapters share from some adapters' samples; name -> what was learned, see `Epoch`.

    Raises:
        InputError: there is no adapter to learn from.
    """
    if not samples:
        raise InputError("An epoch is learned from adapters: got none, expected at least one. Add some first.")
    embeddings = [own.embeddings for own in samples]
    found = calibrate(samples)
    model = Experts(found.weights).fit(samples)
    with one_thread():  # each matrix is small, however many there are
        spreads = [_spreads(own) for own in embeddings if len(own) >= MIN_SAMPLES]
    kept: dict[str, Tensor] = {
        "version": torch.tensor(VERSION),
        "ridge": torch.tensor(choose_ridge(embeddings), dtype=torch.float64),
        "dim": torch.tensor(embeddings[0].shape[1]),
        "covariance": means_and_covariance(embeddings)[1],
        "spreads": torch.cat([*spreads, torch.empty(0, dtype=torch.float64)]),
        "owners": torch.arange(len(spreads)).repeat_interleave(torch.tensor([len(own) for own in spreads]).long()),
        "share": torch.tensor(float(model.worded_.double().mean()), dtype=torch.float64),
    }
    kept |= _numbers("calibration", found) | _numbers("plain", calibrate(samples, terms=False))
    for name, witness in model.witnesses_.items():
        made = copy(witness)
        if isinstance(made, Phrases):
            worded = [own for own, has in zip(samples, model.worded_.tolist(), strict=True) if has]
            kept |= _mean_phrases(name, made, worded)
        else:
            kept |= tensors_of(name, _mean_noisy(made))
    return kept


def _spreads(own: Float[Tensor, "_ dim"]) -> Float[Tensor, " direction"]:
    centred = own.double() - own.double().mean(0)
    singular: Tensor = torch.linalg.svdvals(centred / math.sqrt(len(own) - 1))
    return singular[singular > 1e-7].square()


def _mean_noisy(made: Any) -> Any:
    """A tied Gaussian and its noise, of the mean adapter alone."""
    made.model_ = gaussian = copy(made.model_)
    for name in DERIVED:
        gaussian.__dict__.pop(name, None)
    rows = ("mean_",) if isinstance(gaussian, TiedGaussian) else ("mean_", "white_mean_")
    apart = []
    for name in rows:
        own = getattr(gaussian, name).double()
        mean = own.mean(0, keepdim=True)
        setattr(gaussian, name, mean.to(getattr(gaussian, name).dtype))
        apart.append((own - mean).square().sum(1).mean())
    distance = apart[0] if isinstance(gaussian, TiedGaussian) else (apart[0] - apart[1]) / gaussian.level_
    made.noise_ = (made.noise_.double().mean() - distance / 2).float()[None]
    return made


def _mean_phrases(name: str, fitted: Phrases, worded: Sequence[Features]) -> dict[str, Tensor]:
    """How common phrases are, or marks, and what they mean for the mean adapter."""
    vocabulary, _, phrase, _, used, sizes = count_phrases(worded, fitted.listed)
    gain = torch.zeros(len(vocabulary), dtype=torch.float64).index_add_(0, phrase, fitted.gain_.double())
    return {
        f"{name}|vocabulary_": vocabulary.int(),
        f"{name}|gain_": (gain / len(worded)).float(),
        f"{name}|absent_": fitted.absent_.double().mean().float()[None],
        f"{name}|total_": torch.zeros(len(vocabulary)).index_add_(0, phrase, used.float()),
        f"{name}|count_": sizes.sum(),
    }


def _whole(kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """With what goes without saying where there is one adapter: each phrase has one entry, its own."""
    found = dict(kept)
    for name in LISTS:
        if f"{name}|gain_" in kept:
            count = len(kept[f"{name}|gain_"])
            found[f"{name}|start_"] = torch.arange(count + 1)
            found[f"{name}|adapter_"] = torch.zeros(count, dtype=torch.int32)
    return found


def _numbers(name: str, found: Calibration) -> dict[str, Tensor]:
    seen = math.nan if found.seen_above is None else found.seen_above
    return {
        f"{name}|weights": torch.tensor([found.weights[each] for each in WITNESSES], dtype=torch.float64),
        f"{name}|surprises": torch.tensor(found.surprises, dtype=torch.float64),
        f"{name}|seen_above": torch.tensor(seen, dtype=torch.float64),
    }


def _calibration(name: str, kept: Mapping[str, Tensor]) -> Calibration:
    weights = dict(zip(WITNESSES, kept[f"{name}|weights"].tolist(), strict=False))  # of those that there were
    seen = float(kept[f"{name}|seen_above"])
    return Calibration(weights, tuple(kept[f"{name}|surprises"].tolist()), None if math.isnan(seen) else seen)
