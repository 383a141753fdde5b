"""The dual form of the tied Gaussian against the formula, with the whole covariance and its inverse in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hilora.route.dual import DualGaussian
from hilora.route.features import Features, Terms
from hilora.route.tied import TiedGaussian
from hilora.route.witnesses import Spelling

BUCKETS = 12


def looped(samples: Sequence[Tensor], query: Tensor, shrinkage: float) -> Tensor:
    """Scores in fp64, one adapter after another; the covariance is (dim, dim)."""
    dim, level = query.shape[1], 0.0
    pooled = torch.zeros(dim, dim, dtype=torch.float64)
    for own in samples:
        centred = own.double() - own.double().mean(0)
        pooled += centred.T @ centred
    pooled /= max(1, sum(len(own) for own in samples) - len(samples))
    level = max(float(pooled.trace()) / dim, 1e-6)
    covariance = (1 - shrinkage) * pooled + shrinkage * level * torch.eye(dim, dtype=torch.float64)
    inverse, log_det = torch.linalg.inv(covariance), float(torch.linalg.slogdet(covariance).logabsdet)
    scores = []
    for own in samples:
        delta = query.double() - own.double().mean(0)
        distance = ((delta @ inverse) * delta).sum(1)
        scores.append(-(distance + log_det + dim * math.log(2 * math.pi)) / (2 * dim))
    return torch.stack(scores, dim=1)


def spread(samples: Sequence[Tensor], shrinkage: float) -> float:
    """trace(Sigma^-1 S), S the pooled covariance before it is shrunk to Sigma."""
    centred = torch.cat([own.double() - own.double().mean(0) for own in samples])
    pooled = centred.T @ centred / max(1, len(centred) - len(samples))
    dim = len(pooled)
    shrunk = (1 - shrinkage) * pooled + shrinkage * pooled.trace() / dim * torch.eye(dim, dtype=torch.float64)
    return float(torch.linalg.solve(shrunk, pooled).trace())


def unit(counts: Sequence[int], dim: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Samples of length 1 around a centre for each adapter, and a query of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), dim, generator=generator)
    drawn = [c + 0.7 * torch.randn(n + 1, dim, generator=generator) for c, n in zip(centres, counts, strict=True)]
    normal = [torch.nn.functional.normalize(own, dim=1) for own in drawn]
    return [own[1:] for own in normal], torch.stack([own[0] for own in normal])


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("counts", "dim"), [([20] * 10, 512), ([2, 2], 64), ([7, 9, 2], 18), ([7], 30), ([30, 40], 12)], ids=str
)
def test_the_dual_scores_as_the_formula_does(counts: list[int], dim: int, shrinkage: float) -> None:
    """With more samples than dimensions too, where nothing is gained."""
    samples, query = unit(counts, dim)
    model = DualGaussian(shrinkage).fit(samples)
    want = looped(samples, query, shrinkage)
    torch.testing.assert_close(model.score(query).double(), want, rtol=1e-6, atol=1e-6)
    tied = TiedGaussian(shrinkage).fit(samples)  # it whitens in fp32
    torch.testing.assert_close(tied.score(query).double(), want, rtol=1e-4, atol=1e-4)
    assert tied.spread_ == pytest.approx(model.spread_, rel=1e-9)
    assert model.spread_ == pytest.approx(spread(samples, shrinkage), rel=1e-9)


def test_samples_that_are_all_alike_break_nothing() -> None:
    samples = [torch.ones(3, 40), torch.zeros(2, 40)]
    query = torch.stack([torch.ones(40), torch.zeros(40)])
    scores = DualGaussian(0.5).fit(samples).score(query)
    torch.testing.assert_close(scores.double(), looped(samples, query, 0.5), rtol=1e-6, atol=1e-6)
    assert scores.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(("count", "kind"), [(BUCKETS // 4, DualGaussian), (BUCKETS // 4 + 1, TiedGaussian)])
def test_spelling_takes_the_dual_where_samples_are_few(count: int, kind: type) -> None:
    texts = [spelled(count, seed) for seed in range(2)]
    assert type(Spelling().fit(texts).model_) is kind


def spelled(count: int, seed: int) -> Features:
    drawn = torch.randint(-9, 9, (count, BUCKETS), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    return Features(torch.zeros(count, 1), Terms(drawn, torch.empty(0).int(), torch.empty(0).long()))
