"""What each adapter's samples promise (Theorem 1), what they keep, and what to do about it.

The bound speaks of draws from the fitted Gaussians; the measured rate of samples that neither mean nor covariance has
seen (cross-fitting). Gaussians fitted to 20 samples promise far too much, so trust the measured one, which from 20
samples of an adapter is known to about 10 points either way. Where scores are equal, the rival counts as ahead, as in
the theorem: the order of adapters plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.analyse.bounds import bhattacharyya, normals, top_k_bound
from hilora.base.threads import one_thread
from hilora.errors import InputError
from hilora.evaluate.routing import TOPS
from hilora.pool.view import PoolView
from hilora.route.crossfit import fold_scores
from hilora.route.features import check_samples
from hilora.route.gaussian import MIN_SAMPLES, OwnGaussian
from hilora.route.tied import TiedGaussian

NUM_RIVALS = 3
FEW_SAMPLES = 10
"""Fewer samples than this are called too few: the paper's number is 20."""
SAME = math.log(2)
"""Two adapters closer than this B_ij are near-duplicates: copies. The bound for the pair is then above one half."""
EXCHANGED = 0.3
"""So are two adapters that each take more than this share of the other's held-out samples, whatever their distance:
other samples of the same task take half, yet are far away (in 384 dimensions, B = 30 with own covariances)."""
CAPTURES = 3.0
"""An adapter captures others' prompts if it is first on so many times its fair share of the misrouted, or more ..."""
VICTIMS = 3
"""... and those are of so many adapters or more; otherwise it is a matter between neighbours."""
MISSED = 0.5
"""An adapter that is missed more often than this is worth a word."""


@dataclass(frozen=True)
class Rival:
    """Another adapter, from the point of view of the one diagnosed.

    Attributes:
        distance: Bhattacharyya distance.
        lost: share of the adapter's held-out samples that score at least as high under the rival; None if there are
            none.
        gained: the other way round.
    """

    name: str
    distance: float
    lost: float | None
    gained: float | None


@dataclass(frozen=True)
class Diagnosis:
    """How well one adapter can be told from the others.

    Attributes:
        num_samples, num_held: its samples, and how many of them were held out in turn (all, or none if too few).
        bound: k -> Theorem 1, the share of its prompts that may miss it among the k best.
        measured: k -> that share of its held-out samples; None if there are none.
        rivals: the nearest, by distance.
        captured: share of the others' held-out samples that it is first on.
        fair: that share, if what is misrouted spread evenly over the adapters.
        duplicates: adapters that it can hardly be told from.
        too_few_samples, captures_others: see `FEW_SAMPLES`, `CAPTURES`.
        advice: what to do, a sentence each; empty if all is well.
    """

    name: str
    num_samples: int
    num_held: int
    bound: dict[int, float]
    measured: dict[int, float | None]
    rivals: list[Rival]
    captured: float
    fair: float
    duplicates: list[str]
    too_few_samples: bool
    captures_others: bool
    advice: list[str]


@dataclass(frozen=True)
class HeldOut:
    """Cross-fitted scores.

    Attributes:
        owner: (held,) whose sample a row is.
        scores: (held, adapter).
        ahead: (held, adapter) whether a rival scores at least as high as the owner.
    """

    owner: Int[Tensor, " held"]
    scores: Float[Tensor, "held adapter"]
    ahead: Bool[Tensor, "held adapter"]

    def share(self, rows: Bool[Tensor, "held ..."]) -> Float[Tensor, "adapter ..."]:
        """Mean over each adapter's rows; NaN for adapters without."""
        num = self.scores.shape[1]
        total = torch.zeros(num, *rows.shape[1:], dtype=torch.float64).index_add(0, self.owner, rows.double())
        count = torch.bincount(self.owner, minlength=num)
        return total / count.reshape(-1, *[1] * (rows.ndim - 1))

    def missed(self, k: int) -> Float[Tensor, " adapter"]:
        """Share of each adapter's held-out samples that at least k rivals are ahead on."""
        return self.share(self.ahead.sum(1) >= k)


def held_out(
    embeddings: Sequence[Float[Tensor, "_ dim"]], fresh: Callable[[], OwnGaussian | TiedGaussian]
) -> HeldOut:
    """Score every sample by Gaussians fitted without it (and without the rest of its fold)."""
    owners, rows = [torch.empty(0, dtype=torch.long)], [torch.empty(0, len(embeddings))]
    for owner, scores in fold_scores(embeddings, fresh):
        owners.append(owner)
        rows.append(scores)
    return ranked(torch.cat(owners), torch.cat(rows))


def ranked(owner: Int[Tensor, " held"], scores: Float[Tensor, "held adapter"]) -> HeldOut:
    """Who is ahead of the owner in each row."""
    own = torch.arange(len(owner)), owner
    ahead = scores >= scores[own][:, None]
    ahead[own] = False
    return HeldOut(owner, scores, ahead)


def diagnose(
    samples: Mapping[str, Float[Tensor, "_ dim"]], fresh: Callable[[], OwnGaussian | TiedGaussian]
) -> list[Diagnosis]:
    """Diagnose every adapter of a pool, in the order given.

    Args:
        samples: name -> (sample, dim) embeddings.
        fresh: makes the model to be fitted, e.g. `lambda: OwnGaussian(pool.ridge)`.

    Raises:
        InputError: fewer than two adapters, or samples that no Gaussian can be fitted to.
    """
    if len(samples) < 2:
        raise InputError(f"Telling adapters apart takes two or more: got {len(samples)}.")
    for name, own in samples.items():
        check_samples(own, name)
    names, embeddings = list(samples), list(samples.values())
    with one_thread():
        distance = bhattacharyya(normals(fresh().fit(embeddings)))
    held = held_out(embeddings, fresh)
    bounds = {k: top_k_bound(distance, k) for k in TOPS}
    missed = {k: held.missed(k) for k in TOPS}
    lost = held.share(held.ahead)  # (adapter, rival)
    num_held = torch.bincount(held.owner, minlength=len(names))
    first = held.scores.argmax(1)
    wrong = first != held.owner
    captured = torch.bincount(first[wrong], minlength=len(names))
    others = (len(held.owner) - num_held).clamp(min=1)
    fair = float(wrong.sum()) / len(names)
    found = []
    for i, name in enumerate(names):
        order = [j for j in distance[i].argsort(stable=True).tolist() if j != i]
        rivals = [Rival(names[j], float(distance[i, j]), share(lost[i, j]), share(lost[j, i])) for j in order]
        same = [rival for rival in rivals if is_duplicate(rival)]
        victims = held.owner[wrong & (first == i)].unique()
        one = Diagnosis(
            name,
            len(embeddings[i]),
            int(num_held[i]),
            {k: float(bounds[k][i]) for k in TOPS},
            {k: share(missed[k][i]) for k in TOPS},
            rivals[:NUM_RIVALS],
            captured=float(captured[i] / others[i]),
            fair=fair / int(others[i]),
            duplicates=[rival.name for rival in same],
            too_few_samples=len(embeddings[i]) < FEW_SAMPLES,
            captures_others=bool(captured[i] >= CAPTURES * fair > 0 and len(victims) >= VICTIMS),
            advice=[],
        )
        found.append(replace(one, advice=advise(one, same)))
    return found


def diagnose_pool(pool: PoolView) -> list[Diagnosis]:
    """Diagnose every adapter of a pool by the Gaussians that `hilora` routes with.

    Raises:
        InputError: fewer than two adapters.
    """
    samples = dict(zip(pool.names, pool.embeddings(), strict=True))
    return diagnose(samples, lambda: OwnGaussian(pool.ridge))


def share(value: Tensor) -> float | None:
    """A number, or None where nothing was measured."""
    return None if value.isnan() else float(value)


def is_duplicate(rival: Rival) -> bool:
    """Whether the two can hardly be told apart, by distance or by exchange."""
    exchanged = rival.lost is not None and rival.gained is not None and min(rival.lost, rival.gained) > EXCHANGED
    return rival.distance < SAME or exchanged


def advise(found: Diagnosis, same: Sequence[Rival]) -> list[str]:
    """What to do, a sentence each."""
    advice = []
    if found.too_few_samples:
        shape = f" Fewer than {MIN_SAMPLES} say nothing about directions." if found.num_samples < MIN_SAMPLES else ""
        advice.append(f"Only {found.num_samples} samples: give about 20 typical prompts of its training data.{shape}")
    if not found.num_held:
        advice.append("Nothing could be held out to measure it; the bound alone is no evidence.")
    for rival in same:
        taken = ""
        if rival.lost is not None and rival.gained is not None:
            taken = f": it takes {rival.lost:.0%} of the held-out samples, and gives {rival.gained:.0%} of its own"
        advice.append(
            f"Hardly to be told from {rival.name!r} (B = {rival.distance:.2g}){taken}. Keep one of the two, "
            f"merge them, or give both samples that show the difference."
        )
    if found.captures_others:
        advice.append(
            f"First on {found.captured:.1%} of the other adapters' held-out samples, "
            f"{found.captured / found.fair:.1f} times its fair share: its samples are too mixed, too general or too "
            f"few, or it is close to several others. Take out samples that are not typical of it, or add more."
        )
    top = found.measured[TOPS[0]]
    if top is not None and top > MISSED:
        among = ", ".join(f"{found.measured[k]:.0%} among the {k} best" for k in TOPS[1:])
        advice.append(
            f"Missed on {top:.0%} of its held-out samples, where the bound promises a share of at most "
            f"{found.bound[TOPS[0]]:.2g}. With more candidates that falls to {among}; more samples, or more typical "
            f"ones, may help too."
        )
    return advice
