"""The choice of the ridge, and the cross-fitting below it: nothing is scored by what has seen it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from hilora.route.crossfit import Likelihood, fold_scores
from hilora.route.expected import share_expected
from hilora.route.gaussian import MIN_SAMPLES, RIDGE, OwnGaussian
from hilora.route.ridge import FOLDS, GRID, choose_ridge
from hilora.route.tied import TiedGaussian


def clusters(counts: Sequence[int], dim: int = 16, noise: float = 0.7, seed: int = 0) -> list[Tensor]:
    """Unit vectors around one centre per adapter."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for count in counts:
        centre = torch.nn.functional.normalize(torch.randn(1, dim, generator=generator), dim=1)
        scatter = torch.randn(count, dim, generator=generator) * noise / math.sqrt(dim)
        out.append(torch.nn.functional.normalize(centre + scatter, dim=1))
    return out


class Recorder(OwnGaussian):
    """Remembers what it was fitted to and what it scored."""

    def __init__(self, ridge: float, log: list[tuple[list[Tensor], Tensor]]) -> None:
        super().__init__(ridge)
        self.log, self.kept = log, list[Tensor]()

    def fit(self, embeddings: Sequence[Tensor]) -> OwnGaussian:
        self.kept = list(embeddings)
        return super().fit(embeddings)

    def score(self, query: Tensor) -> Tensor:
        self.log.append((self.kept, query))
        return super().score(query)


def rows(vectors: Tensor) -> set[tuple[float, ...]]:
    return {tuple(vector) for vector in vectors.tolist()}


# cross-fitting


def held_out_scores(samples: Sequence[Tensor], fresh: Callable[[], Likelihood]) -> tuple[Tensor, Tensor]:
    """Each held-out sample's score under its own adapter, and its scores under all."""
    found = fold_scores(samples, fresh)
    own = [scores[torch.arange(len(owner)), owner] for owner, scores in found]
    return torch.cat([torch.empty(0), *own]), torch.cat([torch.empty(0, len(samples)), *(rows for _, rows in found)])


@pytest.mark.parametrize("counts", [(20, 20, 20), (6, 10, 23), (5, 5, 12), (2, 3, 11)])
def test_no_sample_is_scored_by_a_gaussian_that_has_seen_it(counts: tuple[int, ...]) -> None:
    samples, log = clusters(counts), []
    held_out_scores(samples, lambda: Recorder(1e-2, log=log))
    assert log
    for kept, query in log:
        assert not rows(torch.cat(kept)) & rows(query)


@pytest.mark.parametrize("counts", [(20, 20, 20), (7, 10, 23)])
def test_every_sample_is_held_out_once_and_seen_otherwise(counts: tuple[int, ...]) -> None:
    samples, log = clusters(counts), []
    own, scores = held_out_scores(samples, lambda: Recorder(1e-2, log=log))
    assert own.shape == (sum(counts),)
    assert scores.shape == (sum(counts), len(counts))
    held = [row for _, query in log for row in query.tolist()]
    assert sorted(held) == sorted(row for one in samples for row in one.tolist())
    for kept, query in log:  # a fold is the samples without the held-out ones, no less
        assert len(torch.cat(kept)) + len(query) == sum(counts)


def test_every_fit_keeps_enough_samples_for_a_full_gaussian() -> None:
    samples, log = clusters((6, 7, 20)), []
    held_out_scores(samples, lambda: Recorder(1e-2, log=log))
    assert min(len(one) for kept, _ in log for one in kept) >= MIN_SAMPLES


def test_an_adapter_with_few_samples_competes_and_is_never_held_out() -> None:
    samples, log = clusters((20, MIN_SAMPLES, 3)), []
    own, scores = held_out_scores(samples, lambda: Recorder(1e-2, log=log))
    assert len(own) == 20
    assert scores.shape == (20, 3)
    for kept, query in log:
        assert rows(query) <= rows(samples[0])
        assert torch.equal(kept[1], samples[1])
        assert torch.equal(kept[2], samples[2])


@pytest.mark.parametrize("form", [lambda: OwnGaussian(1e-2), TiedGaussian], ids=["own", "tied"])
def test_held_out_scores_are_those_of_a_fit_without_the_fold(form: type) -> None:
    samples = clusters((10, 15))
    own, scores = held_out_scores(samples, form)
    expected_own, expected = [], []
    for fold in range(FOLDS):
        kept = [torch.stack([v for i, v in enumerate(one) if i % FOLDS != fold]) for one in samples]
        model = form().fit(kept)
        for adapter, one in enumerate(samples):
            scored = model.score(one[fold::FOLDS])
            expected.append(scored)
            expected_own.append(scored[:, adapter])
    torch.testing.assert_close(scores, torch.cat(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own, torch.cat(expected_own), rtol=1e-4, atol=1e-4)


def test_an_outlier_is_not_known_to_its_own_gaussian() -> None:
    """Seen in fitting, it would score like the others."""
    samples = clusters((20, 20), noise=0.2)
    samples[0][7] = -samples[0][7]
    own, _ = held_out_scores(samples, lambda: OwnGaussian(1e-2))
    worst = own.sort().values
    assert worst[0] < worst[1] - 1
    seen = OwnGaussian(1e-2).fit(samples).score(samples[0])[:, 0].sort().values
    assert seen[0] > seen[1] - 1


def test_no_samples_to_spare_give_empty_scores() -> None:
    own, scores = held_out_scores(clusters((5, 4, 2)), OwnGaussian)
    assert own.shape == (0,)
    assert scores.shape == (0, 3)


# the ridge


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_ridge_is_one_of_the_grid(noise: float) -> None:
    assert choose_ridge(clusters((12, 12, 12), noise=noise)) in GRID


@pytest.mark.parametrize("counts", [(), (2, 3), (4, 4, 4), (MIN_SAMPLES,) * 3])
def test_too_few_samples_give_the_default_ridge(counts: tuple[int, ...]) -> None:
    assert choose_ridge(clusters(counts)) == RIDGE


def test_the_chosen_ridge_lets_own_adapters_through_and_few_others() -> None:
    samples = clusters((20,) * 6, dim=24, noise=0.7)
    ridge = choose_ridge(samples)
    own, scores = held_out_scores(samples, lambda: OwnGaussian(ridge))
    assert (own > 0).float().mean() > 0.8
    assert (scores > 0).sum(1).float().mean() < 3  # of 6


def own_share(samples: Sequence[Tensor], ridge: float, gamma: float, rank: int) -> float:
    """Mean share of the budget that a held-out sample's adapter gets: a plain loop from the module's words."""
    shares = []
    for fold in range(FOLDS):
        model = OwnGaussian(ridge).fit([own[torch.arange(len(own)) % FOLDS != fold] for own in samples])
        for adapter, own in enumerate(samples):
            for row in model.score(own[fold::FOLDS]).tolist():
                best = max(row)
                size = sum(s > 0 for s in row) if best > 0 else max(math.ceil(abs(best)), 3)
                kept = sorted(range(len(row)), key=lambda i: -row[i])[:size]
                total = max(1, math.floor(gamma * rank * len(kept) + 0.5))
                powers = [math.exp(row[i] - best) for i in kept]
                whole = share_expected(
                    np.array(powers) / sum(powers), np.full(len(kept), rank, dtype=np.int64), total
                )
                shares.append(sum(int(n) for i, n in zip(kept, whole, strict=True) if i == adapter) / total)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("noise", [0.9, 1.6])
def test_the_ridge_gives_the_own_adapter_the_most_of_the_budget_that_gamma_leaves(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GRID[1::3]
    monkeypatch.setattr("hilora.route.ridge.GRID", grid)
    samples, chosen = clusters((10,) * 5, noise=noise), {}
    for gamma in (0.2, 0.4, 1.0):
        shares = {ridge: own_share(samples, ridge, gamma, 8) for ridge in grid}
        chosen[gamma] = max(ridge for ridge, share in shares.items() if share >= max(shares.values()) - 1e-3)
        assert choose_ridge(samples, gamma=gamma) == chosen[gamma]
    assert len(set(chosen.values())) > 1
    assert choose_ridge(samples) == chosen[0.4]  # the method's own


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_permuting_adapters_does_not_change_the_ridge(noise: float) -> None:
    samples = clusters((15, 11, 13, 12), noise=noise)
    chosen = choose_ridge(samples)
    assert choose_ridge(samples[::-1]) == chosen
    assert choose_ridge([samples[i] for i in (2, 0, 3, 1)]) == chosen


def test_every_adapter_of_a_pool_has_a_say_in_the_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilora.route.ridge.GRID", (1e-5, 1e-4, 1e-3, 1e-2))
    monkeypatch.setattr("hilora.route.ridge.MOST_QUERIES", 60)  # as 400 in a pool of 130
    tight, wide = clusters((10,) * 10, noise=0.1), clusters((10,) * 10, noise=2.0, seed=1)
    assert choose_ridge(tight + wide) == choose_ridge(wide + tight)


def test_choosing_changes_nothing_it_was_given() -> None:
    samples = clusters((8, 8))
    kept = [one.clone() for one in samples]
    choose_ridge(samples)
    assert all(torch.equal(one, was) for one, was in zip(samples, kept, strict=True))
