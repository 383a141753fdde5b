"""What fitted models hold, as tensors by name, and models of such tensors: for files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hilora.route.dual import DualGaussian
from hilora.route.tied import DERIVED, TiedGaussian
from hilora.route.witnesses import SHRINKAGE, SPELLING_SHRINKAGE, Meaning, Outline, Phrases, Spelling

MODELS: Mapping[str, type[TiedGaussian | DualGaussian]] = {"tied": TiedGaussian, "dual": DualGaussian}
WITNESSES = {"meaning": Meaning, "spelling": Spelling, "phrases": Phrases, "outline": Outline}
"""By name; new ones come last, since weights are kept in this order."""
LISTS = tuple(name for name, witness in WITNESSES.items() if issubclass(witness, Phrases))
"""Those that count what samples use."""
SHRINKAGES = {"meaning": SHRINKAGE, "spelling": SPELLING_SHRINKAGE}


@dataclass(frozen=True)
class _Learned:
    """Names of what `fit` leaves: tensors, integers that fit into 32 bits, and numbers."""

    tensors: tuple[str, ...]
    small: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


_LISTED = _Learned(("start_", "gain_", "absent_"), ("vocabulary_", "adapter_"))
LEARNED = {
    Meaning: _Learned(("noise_",)),
    Spelling: _Learned(("rarity_", "noise_")),
    Phrases: _LISTED,
    Outline: _LISTED,
    TiedGaussian: _Learned(("whitening_", "mean_"), numbers=("log_det_", "spread_")),
    DualGaussian: _Learned(("mean_", "whitening_", "white_mean_"), numbers=("level_", "log_det_", "spread_")),
}
SHARED = frozenset({"whitening_", "rarity_", "log_det_", "spread_", "level_"})
"""What is no adapter's own."""


def tensors_of(name: str, witness: Any, *, shared: bool = True) -> dict[str, Tensor]:
    """All that a witness has learned; or what is the adapters' own."""
    found = _tensors(name, witness, shared)
    for kind, form in MODELS.items():
        if isinstance(gaussian := getattr(witness, "model_", None), form):
            found |= _tensors(f"{name}|{kind}", gaussian, shared)
    return found


def witness_of(name: str, kept: Mapping[str, Tensor], like: Any = None) -> Any:
    """Inverse of `tensors_of`; where only what is the adapters' own was kept, all else is as in another witness.

    Raises:
        KeyError: something is missing.
    """
    witness: Any = _take(WITNESSES[name](), name, kept, like)
    for kind, form in MODELS.items():
        if f"{name}|{kind}|mean_" in kept:
            gaussian = form(SHRINKAGES[name])
            witness.model_ = _take(gaussian, f"{name}|{kind}", kept, None if like is None else like.model_)
    return witness


def _tensors(prefix: str, fitted: Any, shared: bool) -> dict[str, Tensor]:
    names = LEARNED[type(fitted)]
    found: dict[str, Tensor] = {each: getattr(fitted, each) for each in names.tensors}
    found |= {each: getattr(fitted, each).int() for each in names.small}
    found |= {each: torch.tensor(getattr(fitted, each), dtype=torch.float64) for each in names.numbers}
    return {f"{prefix}|{each}": tensor for each, tensor in found.items() if shared or each not in SHARED}


def _take(fresh: Any, prefix: str, kept: Mapping[str, Tensor], like: Any) -> Any:
    names = LEARNED[type(fresh)]
    if like is not None:
        vars(fresh).update({each: value for each, value in vars(like).items() if each not in DERIVED})
    for each in (*names.tensors, *names.small, *names.numbers):
        if like is not None and each in SHARED:
            continue
        value = kept[f"{prefix}|{each}"]
        if each in names.tensors:
            # they may be mapped from a file, anywhere in memory; products of aligned ones are alike to the bit
            setattr(fresh, each, value.clone())
        else:
            setattr(fresh, each, value.long() if each in names.small else float(value))
    return fresh
