"""What `Experts` have learned, as tensors: whoever keeps samples may keep these beside them, and need not fit again.

The weights of the witnesses are not among them: they come with the calibration. What is learned without terms is a
part of what is learned with them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.route.experts import WEIGHTS, Experts
from hilora.route.features import Features
from hilora.route.grown import GrownExperts
from hilora.route.kept import LISTS, WITNESSES, tensors_of, witness_of
from hilora.route.samples import Sampled
from hilora.route.witnesses import SHRINKAGE, SPELLING_SHRINKAGE, Phrases

VERSION = 1
"""Of what fitting gives for the same samples; to be raised with every change to it."""
RECIPE = f"experts {VERSION}: {SHRINKAGE}, {SPELLING_SHRINKAGE}, {Phrases().strength}"
"""All that the tensors depend on beside the samples."""
NEEDED = ("meaning", "spelling", "phrases")
"""Witnesses that a pool with terms has, of whatever time."""
FEW = 0.05
"""Share of a pool's adapters that are worked out anew at each start, before all is kept again."""
_log = logging.getLogger(__name__)  # warnings go to standard error, unless the program around wants them elsewhere


def learn(samples: Sequence[Features]) -> dict[str, Tensor]:
    """Fit to each adapter's samples; name -> what was learned."""
    model = Experts(WEIGHTS).fit(samples)
    found = {"worded": model.worded_}
    for name, witness in model.witnesses_.items():
        found |= tensors_of(name, witness)
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


def grown(known: Sampled, weights: Mapping[str, float], terms: bool) -> GrownExperts:
    """Experts of these samples under their epoch; those that were kept are taken as they are, whoever the others."""
    epoch = known.shared()
    assert epoch is not None
    found, keys = GrownExperts.of(epoch, weights, terms), known.sample_keys()
    kept = known.learned(RECIPE)
    origin = torch.full((len(keys),), -1)
    if kept is not None:
        try:
            found, origin = found.restored(kept), origins(_keys(kept, len(kept["worded"])), keys)
        except (KeyError, ValueError) as error:
            _log.warning("Statistics that are not of this epoch (%s) were not used.", error)
    return found.over(known.samples((origin < 0).nonzero()[:, 0].tolist()), origin)


def learn_grown(known: Sampled) -> dict[str, Tensor]:
    """What is each adapter's own under the pool's epoch; name -> what was learned."""
    keys = known.sample_keys()
    hashes = torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8)
    return grown(known, WEIGHTS, True).tensors() | {"keys": hashes}


def covers(kept: Mapping[str, Tensor], keys: Sequence[str]) -> bool:
    """Whether nearly all of some adapters are among those that were kept, and not many others."""
    held = set(_keys(kept, len(kept["keys"]))) if "keys" in kept else set()
    return len(set(keys) ^ held) <= FEW * len(keys)


def origins(before: Sequence[str], now: Sequence[str]) -> Int[Tensor, " adapter"]:
    """Where each of some keys was before; -1 where it was not."""
    places = {key: place for place, key in enumerate(before)}
    return torch.tensor([places.get(key, -1) for key in now], dtype=torch.long)


def _keys(kept: Mapping[str, Tensor], adapters: int) -> list[str]:
    if len(kept["keys"]) != adapters:
        raise ValueError(f"expected keys of {adapters} adapters, got {len(kept['keys'])}")
    return [bytes(row).hex() for row in kept["keys"].numpy()]


def _restored(kept: Mapping[str, Tensor], adapters: int, weights: Mapping[str, float], terms: bool) -> Experts:
    """Inverse of `learn`.

    Raises:
        KeyError, ValueError: something is missing, or of another number of adapters.
    """
    found = Experts(weights, terms)
    found.weights_, found.worded_ = WEIGHTS | dict(weights), kept["worded"].clone() & terms
    numbers = {name: f"{name}|{'absent_' if name in LISTS else 'noise_'}" for name in WITNESSES}
    names = [name for name in WITNESSES if name == "meaning" or found.worded_.any()]
    names = [name for name in names if name in NEEDED or numbers[name] in kept]
    found.witnesses_ = {name: witness_of(name, kept) for name in names}
    worded = int(found.worded_.sum())
    sizes = {"worded": len(found.worded_), "meaning": len(kept["meaning|noise_"])}
    others = {name: len(kept[numbers[name]]) for name in names[1:]}
    if set(sizes.values()) != {adapters} or not set(others.values()) <= {worded}:
        raise ValueError(f"expected {adapters}, {worded} of them with terms; got {sizes | others}")
    return found
