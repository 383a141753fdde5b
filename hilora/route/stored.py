"""What `Experts` have learned, as tensors: whoever keeps samples may keep these beside them, and need not fit again.

The weights of the witnesses are not among them: they come with the calibration. What is learned without terms is a
part of what is learned with them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hilora.route.dual import DualGaussian
from hilora.route.experts import WEIGHTS, Experts
from hilora.route.features import Features
from hilora.route.samples import Sampled
from hilora.route.tied import TiedGaussian
from hilora.route.witnesses import SHRINKAGE, SPELLING_SHRINKAGE, Meaning, Phrases, Spelling

VERSION = 1
"""Of what fitting gives for the same samples; to be raised with every change to it."""
RECIPE = f"experts {VERSION}: {SHRINKAGE}, {SPELLING_SHRINKAGE}, {Phrases().strength}"
"""All that the tensors depend on beside the samples."""
MODELS: Mapping[str, type[TiedGaussian | DualGaussian]] = {"tied": TiedGaussian, "dual": DualGaussian}
_log = logging.getLogger(__name__)  # warnings go to standard error, unless the program around wants them elsewhere


@dataclass(frozen=True)
class _Learned:
    """Names of what `fit` leaves: tensors, integers that fit into 32 bits, and numbers."""

    tensors: tuple[str, ...]
    small: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


LEARNED = {
    Meaning: _Learned(("noise_",)),
    Spelling: _Learned(("rarity_", "noise_")),
    Phrases: _Learned(("start_", "gain_", "absent_"), ("vocabulary_", "adapter_")),
    TiedGaussian: _Learned(("whitening_", "mean_"), numbers=("log_det_", "spread_")),
    DualGaussian: _Learned(("mean_", "whitening_", "white_mean_"), numbers=("level_", "log_det_", "spread_")),
}
WITNESSES = {"meaning": Meaning, "spelling": Spelling, "phrases": Phrases}
SHRINKAGES = {"meaning": SHRINKAGE, "spelling": SPELLING_SHRINKAGE}


def learn(samples: Sequence[Features]) -> dict[str, Tensor]:
    """Fit to each adapter's samples; name -> what was learned."""
    model = Experts(WEIGHTS).fit(samples)
    found = {"worded": model.worded_}
    for name, witness in model.witnesses_.items():
        found |= _tensors(name, witness)
        for kind, form in MODELS.items():
            if isinstance(gaussian := getattr(witness, "model_", None), form):
                found |= _tensors(f"{name}|{kind}", gaussian)
    return found


def experts(known: Sampled, weights: Mapping[str, float], terms: bool) -> Experts:
    """Experts of these samples: as they were learned and kept, or else fitted now; alike to the bit.

    Args:
        known: keeps samples.
        weights: of the witnesses.
        terms: whether to look at n-grams at all.
    """
    kept = known.learned(RECIPE)
    if kept is not None:
        try:
            return _restored(kept, len(known), weights, terms)
        except (KeyError, ValueError) as error:
            _log.warning("Statistics that are not of %d adapters (%s) were not used.", len(known), error)
    return Experts(weights, terms).fit(known.samples())


def _restored(kept: Mapping[str, Tensor], adapters: int, weights: Mapping[str, float], terms: bool) -> Experts:
    """Inverse of `learn`.

    Raises:
        KeyError, ValueError: something is missing, or of another number of adapters.
    """
    found = Experts(weights, terms)
    found.weights_, found.worded_ = weights, kept["worded"].clone() & terms
    names = [name for name in WITNESSES if name == "meaning" or found.worded_.any()]
    found.witnesses_ = {}
    for name in names:
        witness: Any = _take(WITNESSES[name](), name, kept)
        for kind, form in MODELS.items():
            if f"{name}|{kind}|mean_" in kept:
                witness.model_ = _take(form(SHRINKAGES[name]), f"{name}|{kind}", kept)
        found.witnesses_[name] = witness
    worded = int(found.worded_.sum())
    sizes = {"worded": len(found.worded_), "meaning": len(kept["meaning|noise_"])}
    others = {name: len(kept[f"{name}|{'absent_' if name == 'phrases' else 'noise_'}"]) for name in names[1:]}
    if set(sizes.values()) != {adapters} or not set(others.values()) <= {worded}:
        raise ValueError(f"expected {adapters}, {worded} of them with terms; got {sizes | others}")
    return found


def _tensors(prefix: str, fitted: Any) -> dict[str, Tensor]:
    names = LEARNED[type(fitted)]
    found: dict[str, Tensor] = {each: getattr(fitted, each) for each in names.tensors}
    found |= {each: getattr(fitted, each).int() for each in names.small}
    found |= {each: torch.tensor(getattr(fitted, each), dtype=torch.float64) for each in names.numbers}
    return {f"{prefix}|{each}": tensor for each, tensor in found.items()}


def _take(fresh: Any, prefix: str, kept: Mapping[str, Tensor]) -> Any:
    names = LEARNED[type(fresh)]
    for each in names.tensors:
        # kept tensors may be mapped from a file, anywhere in memory: products of aligned ones are alike to the bit
        setattr(fresh, each, kept[f"{prefix}|{each}"].clone())
    for each in names.small:
        setattr(fresh, each, kept[f"{prefix}|{each}"].long())
    for each in names.numbers:
        setattr(fresh, each, float(kept[f"{prefix}|{each}"]))
    return fresh
