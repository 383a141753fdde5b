"""Does a new adapter take other adapters' prompts? Asked of their samples, before it may be routed to.

The others' samples are scored by statistics that have not seen them (cross-fitting: else each would defend its own
by heart), with the newcomer among the adapters. A sample is taken if the newcomer scores highest. The share taken,

    share = max_v  |{x not of the neighbour : newcomer = argmax_i s_vi(x)}| / |{x not of the neighbour}|

is the largest over the ways v in which methods score: the calibrated posterior (`hilora-plus`), the own-covariance
Gaussian (`hilora`) and the cosine with the mean (`selection`, `mixture`, `fusion`). Left out is the neighbour, the
one adapter that it takes most from: another version of the same task is between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.crossfit import folds
from hilora.route.epoch import Epoch
from hilora.route.experts import WEIGHTS, Calibration, Experts
from hilora.route.features import Features
from hilora.route.gaussian import OwnGaussian
from hilora.route.grown import GrownExperts
from hilora.route.retriever import Retriever

Scores = Callable[[Sequence[Features], Features], Float[Tensor, "text adapter"]]
"""(each adapter's samples, texts) -> scores."""


@dataclass(frozen=True)
class Capture:
    """What a newcomer takes of the others' samples.

    Attributes:
        share: of them, the neighbour's left out; 0 where nothing could be held out.
        by: the way of scoring by which it is that many.
        held: samples that were looked at, the neighbour's left out.
        neighbour: position of the adapter that it takes most from; None where it takes nothing.
        neighbour_share: of the neighbour's samples; what the bound does not look at.
    """

    share: float
    by: str = ""
    held: int = 0
    neighbour: int | None = None
    neighbour_share: float = 0.0


def capture(
    newcomer: Features,
    others: Sequence[Features],
    *,
    ridge: float,
    calibration: Calibration | None = None,
    epoch: Epoch | None = None,
) -> Capture:
    """How much a newcomer takes of the other adapters' samples, by the way of scoring by which it is most.

    Args:
        newcomer: what is known of its samples.
        others: of each other adapter's; of those with too few to spare nothing is held out.
        ridge: of the own-covariance Gaussian.
        calibration: of the pool, for the witnesses' weights.
        epoch: what adapters share, if the pool has one.
    """
    found = captures(newcomer, others, ridge=ridge, calibration=calibration, epoch=epoch)
    return max(found, key=lambda each: each.share)


def captures(
    newcomer: Features,
    others: Sequence[Features],
    *,
    ridge: float,
    calibration: Calibration | None = None,
    epoch: Epoch | None = None,
) -> list[Capture]:
    """The same by each way of scoring; one that says nothing where no sample could be held out."""
    weights = (epoch.calibration if epoch else calibration or Calibration(WEIGHTS)).weights

    def posterior(samples: Sequence[Features], texts: Features) -> Float[Tensor, "text adapter"]:
        if epoch is None:
            return Experts(weights).fit(samples).score(texts)
        model = GrownExperts.of(epoch, weights, True).over(samples, torch.full((len(samples),), -1))
        return model.judge(texts, torch.ones(len(texts), len(samples), dtype=torch.bool))[0]

    def own(samples: Sequence[Features], texts: Features) -> Float[Tensor, "text adapter"]:
        volume = None if epoch is None else epoch.volume(ridge)
        return OwnGaussian(ridge).fit([each.embeddings for each in samples], volume).score(texts.embeddings)

    def cosine(samples: Sequence[Features], texts: Features) -> Float[Tensor, "text adapter"]:
        router = Retriever()
        router.mean_ = router.means([each.embeddings for each in samples])
        return router.score(texts.embeddings)

    ways: dict[str, Scores] = {"posterior": posterior, "own covariances": own, "cosine": cosine}
    taken: dict[str, list[Tensor]] = {name: [] for name in ways}
    owners: list[Tensor] = []
    with one_thread():
        for kept, held, owner in folds([*others, newcomer], [True] * len(others) + [False]):
            owners.append(owner)
            for name, scores in ways.items():
                taken[name].append(scores(kept, held).argmax(1) == len(others))
    if not owners:
        return [Capture(0.0)]
    owner = torch.cat(owners)
    return [_share(torch.cat(rows), owner, len(others), name) for name, rows in taken.items()]


def _share(taken: Tensor, owner: Int[Tensor, " held"], others: int, by: str) -> Capture:
    """The share of taken samples, those of the adapter left out that the most are taken from."""
    most = torch.bincount(owner[taken], minlength=others)
    if not int(most.sum()):
        return Capture(0.0, by, len(owner))
    neighbour = int(most.argmax())
    rest = owner != neighbour
    held = int(rest.sum())
    of_neighbour = float(taken[~rest].double().mean())
    return Capture(float(taken[rest].double().mean()) if held else 0.0, by, held, neighbour, of_neighbour)
