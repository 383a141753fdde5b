"""Bhattacharyya distances and Theorem 1 against dense matrices, closed forms, quadrature and random draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hilora.analyse.bounds import (
    Normals,
    bhattacharyya,
    log_densities,
    normals,
    pair_bound,
    squares,
    top_k_bound,
)
from hilora.errors import InputError
from hilora.route.gaussian import MIN_SAMPLES, OwnGaussian
from hilora.route.tied import TiedGaussian

FORMS = [OwnGaussian(1e-2), TiedGaussian(0.2)]
form = pytest.mark.parametrize("model", FORMS, ids=["own", "tied"])


def samples_of(counts: tuple[int, ...], dim: int, seed: int = 0) -> list[Tensor]:
    """Unit vectors around a centre per adapter, some adapters wider than others; fp64."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, count in enumerate(counts):
        centre = torch.randn(dim, generator=generator, dtype=torch.float64)
        scatter = torch.randn(count, dim, generator=generator, dtype=torch.float64) * (0.5 + 0.2 * i)
        found.append(torch.nn.functional.normalize(centre + scatter, dim=1))
    return found


def some(num: int, dim: int, directions: int, seed: int, apart: float = 1.0) -> Normals:
    """Random Gaussians of random widths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Normals(draw(num, dim) * apart, draw(num, dim).exp(), draw(num, directions, dim))


def plain(means: Sequence[float], variances: Sequence[float]) -> Normals:
    """Gaussians in one dimension."""
    mean, variance = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (means, variances))
    return Normals(mean, variance, mean.new_empty(len(mean), 0, 1))


def dense(pool: Normals, i: int) -> np.ndarray:
    return (torch.diag(pool.floor[i]) + pool.factor[i].T @ pool.factor[i]).numpy()


def reference(mean: list[np.ndarray], covariance: list[np.ndarray]) -> float:
    """Lemma 1 for two Gaussians, as it stands in the paper."""
    middle, delta = (covariance[0] + covariance[1]) / 2, mean[0] - mean[1]
    volume = [np.linalg.slogdet(each)[1] for each in (middle, *covariance)]
    return float(delta @ np.linalg.solve(middle, delta) / 8 + (volume[0] - (volume[1] + volume[2]) / 2) / 2)


# the distance


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize(
    ("dim", "counts"),
    [(3, (40, 9, 6)), (24, (20, 20, 20)), (48, (5, 9, 20)), (8, (20, 3, 5, 2)), (1, (5, 6)), (6, (3, 2, 4))],
)
def test_the_low_rank_form_is_the_paper_s_distance(dim: int, counts: tuple[int, ...], ridge: float) -> None:
    """Adapters of fewer than `MIN_SAMPLES` samples, whose covariance is diagonal, included."""
    samples = samples_of(counts, dim)
    model = OwnGaussian(ridge).fit(samples)
    distance = bhattacharyya(normals(model))
    covariance = [
        np.diag(1 / model.precision_[i].numpy())
        if len(own) < MIN_SAMPLES
        else np.atleast_2d(np.cov(own.numpy().T)) + ridge * np.eye(dim)
        for i, own in enumerate(samples)
    ]
    for i in range(len(samples)):
        for j in range(len(samples)):
            expected = reference([samples[k].numpy().mean(0) for k in (i, j)], [covariance[k] for k in (i, j)])
            assert float(distance[i, j]) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_one_covariance_for_all_leaves_an_eighth_of_the_squared_mahalanobis_distance() -> None:
    samples = samples_of((9, 20, 5), 12)
    means = np.stack([own.numpy().mean(0) for own in samples])
    pooled = sum((len(own) - 1) * np.cov(own.numpy().T) for own in samples) / (34 - 3)
    covariance = 0.8 * pooled + 0.2 * np.trace(pooled) / 12 * np.eye(12)
    distance = bhattacharyya(normals(TiedGaussian(0.2).fit(samples)))
    for i in range(3):
        for j in range(3):
            delta = means[i] - means[j]
            assert float(distance[i, j]) == pytest.approx(delta @ np.linalg.solve(covariance, delta) / 8, rel=1e-5)


@pytest.mark.parametrize(("means", "variances"), [((0, 3), (1, 1)), ((0, 1), (0.2, 5)), ((2, 2), (0.01, 4))])
def test_in_one_dimension_it_is_the_textbook_s_formula(
    means: tuple[float, ...], variances: tuple[float, ...]
) -> None:
    pool = plain(means, variances)
    a, b = variances
    expected = (means[0] - means[1]) ** 2 / (4 * (a + b)) + 0.5 * math.log((a + b) / (2 * math.sqrt(a * b)))
    assert float(bhattacharyya(pool)[0, 1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_it_is_the_logarithm_of_the_overlap_by_quadrature(dim: int) -> None:
    pool = some(3, dim, 1, seed=4)
    axis = torch.linspace(-16, 16, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    density = log_densities(pool, grid).exp() / (2 * math.pi) ** (dim / 2)  # (point, adapter)
    step = float(axis[1] - axis[0]) ** dim
    assert (density.sum(0) * step).tolist() == pytest.approx([1, 1, 1], rel=1e-6)
    overlap = density.sqrt().T @ density.sqrt() * step
    assert (-bhattacharyya(pool)).exp().numpy() == pytest.approx(overlap.numpy(), rel=1e-6)


@form
def test_identical_adapters_are_at_distance_zero_and_bounded_by_one(model: OwnGaussian | TiedGaussian) -> None:
    own, other = samples_of((20, 20), 30)
    distance = bhattacharyya(normals(model.fit([own, other, own.flip(0)])))
    assert float(distance[0, 2]) == pytest.approx(0, abs=1e-9)
    assert float(top_k_bound(distance, 1)[0]) == pytest.approx(1, abs=1e-6)
    assert float(distance[0, 1]) > 0.1


@form
def test_the_distance_is_symmetric_and_no_adapter_s_place_or_company_matters(
    model: OwnGaussian | TiedGaussian,
) -> None:
    samples = samples_of((9, 20, 6, 12), 16)
    pool = normals(model.fit(samples))
    distance = bhattacharyya(pool)
    assert torch.equal(distance, distance.T)
    assert bool((distance.diagonal() == 0).all())
    order = torch.tensor([2, 0, 3])
    part = bhattacharyya(Normals(pool.mean[order], pool.floor[order], pool.factor[order]))
    torch.testing.assert_close(part, distance[order][:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [5, 40])
@form
def test_rotating_and_moving_the_embeddings_changes_no_distance(model: OwnGaussian | TiedGaussian, dim: int) -> None:
    samples = samples_of((9, 20, 6), dim)
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    before = bhattacharyya(normals(model.fit(samples)))
    after = bhattacharyya(normals(model.fit([own @ rotation + 0.5 for own in samples])))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)  # tied means are kept in fp32


@pytest.mark.parametrize("ridge", [1e-2, 1e-5, 1e-8])
def test_other_units_change_no_distance_however_small_the_ridge(ridge: float) -> None:
    samples = samples_of((20, 20), 64)
    before = bhattacharyya(normals(OwnGaussian(ridge).fit(samples)))
    after = bhattacharyya(normals(OwnGaussian(ridge * 9).fit([3 * own for own in samples])))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_squares_lose_no_digits_to_a_small_floor() -> None:
    """Along a direction of the factor x' Sigma^-1 x is about 1 / l; in Woodbury's difference 1 / floor cancels."""
    factor = torch.eye(1, 6, dtype=torch.float64)[None] * 2
    squared, log_det = squares(torch.full((1, 6), 1e-14, dtype=torch.float64), factor, factor / 2)
    assert float(squared[0, 0]) == pytest.approx(0.25, rel=1e-12)
    assert float(log_det[0]) == pytest.approx(5 * math.log(1e-14) + math.log(4), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(1, 7), st.integers(0, 4), st.integers(0, 10**6))
def test_no_distance_is_negative_and_every_one_is_the_dense_one(
    num: int, dim: int, directions: int, seed: int
) -> None:
    pool = some(num, dim, directions, seed)
    distance = bhattacharyya(pool)
    assert bool((distance >= 0).all())
    expected = reference([pool.mean[k].numpy() for k in (0, 1)], [dense(pool, k) for k in (0, 1)])
    assert float(distance[0, 1]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# the bounds


def misses(pool: Normals, k: int, count: int, seed: int) -> Tensor:
    """Share of random prompts of each adapter that at least k rivals score as high on."""
    prompts = pool.draw(count, torch.Generator().manual_seed(seed))
    found = []
    for i in range(len(pool)):
        scores = log_densities(pool, prompts[i])
        found.append(((scores >= scores[:, i : i + 1]).sum(1) > k).double().mean())
    return torch.stack(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.floats(0.1, 4), st.integers(0, 10**6))
def test_random_prompts_miss_no_more_often_than_theorem_1_allows(num: int, dim: int, apart: float, seed: int) -> None:
    pool, count = some(num, dim, 2, seed, apart), 1000
    for k in (1, 2, 4):
        bound = top_k_bound(bhattacharyya(pool), k)
        noise = 5 * (bound * (1 - bound) / count).sqrt() + 5 / count
        assert bool((misses(pool, k, count, seed) <= bound + noise).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6))
def test_the_bound_falls_in_k_and_rises_with_more_rivals(num: int, seed: int) -> None:
    pool = some(num, 3, 1, seed)
    distance = bhattacharyya(pool)
    bounds = torch.stack([top_k_bound(distance, k) for k in range(1, 12)])  # (k, adapter)
    assert bool((bounds[1:] <= bounds[:-1]).all())
    assert bool(((bounds >= 0) & (bounds <= 1)).all())
    fewer = top_k_bound(distance[:-1, :-1], 1)
    assert bool((fewer <= bounds[0, :-1]).all())


def test_the_bound_is_the_sum_over_rivals_divided_by_k() -> None:
    distance = bhattacharyya(some(5, 4, 2, seed=1, apart=4))
    for k in (1, 2, 3):
        for i in range(5):
            rivals = sum(math.exp(-float(distance[i, j])) for j in range(5) if j != i)
            assert float(top_k_bound(distance, k)[i]) == pytest.approx(min(1, rivals / k), rel=1e-12)


@pytest.mark.parametrize("gap", [0.5, 2.0, 5.0])
def test_two_unit_gaussians_err_at_half_their_gap_which_the_bound_exceeds(gap: float) -> None:
    """P(p_j >= p_i) = Phi(-gap / 2) exactly; the bound is exp(-gap^2 / 8)."""
    pool = plain((0, gap), (1, 1))
    exact = 0.5 * math.erfc(gap / 2 / math.sqrt(2))
    assert misses(pool, 1, 100_000, 0).numpy() == pytest.approx(exact, abs=5 * math.sqrt(exact / 100_000))
    bound = top_k_bound(bhattacharyya(pool), 1)
    assert bound.numpy() == pytest.approx(math.exp(-(gap**2) / 8))
    assert exact < float(bound[0])


@pytest.mark.parametrize("priors", [(0.5, 0.5), (0.9, 0.1), (3.0, 1.0)])
def test_lemma_1_bounds_the_best_rule_for_a_pair_under_its_priors(priors: tuple[float, float]) -> None:
    pool, count = some(2, 3, 1, seed=5), 50_000
    bound = float(pair_bound(bhattacharyya(pool), priors)[0, 1])
    share = torch.tensor(priors, dtype=torch.float64) / sum(priors)
    prompts = pool.draw(count, torch.Generator().manual_seed(0))
    # the best rule takes the larger pi p; it errs on integral of min(pi_i p_i, pi_j p_j)
    wrong = [
        float(((log_densities(pool, prompts[i]) + share.log()).argmax(1) != i).double().mean()) for i in range(2)
    ]
    error = float(share @ torch.tensor(wrong, dtype=torch.float64))
    assert 0.01 < error < bound + 5 * math.sqrt(bound / count)
    assert bound == pytest.approx(float((share[0] * share[1]).sqrt() * (-bhattacharyya(pool)[0, 1]).exp()))


def test_without_priors_a_pair_s_bound_is_theorem_1_s() -> None:
    distance = bhattacharyya(some(2, 3, 1, seed=5))
    assert float(pair_bound(distance)[0, 1]) == pytest.approx(float(top_k_bound(distance, 1)[0]))


@pytest.mark.parametrize("priors", [(0.5,), (0.5, 0.5, 0.0), (0.5, 0.5, -1.0), (0.5, math.nan, 1.0)])
def test_priors_that_are_no_shares_are_refused(priors: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected 3 numbers above 0"):
        pair_bound(torch.zeros(3, 3, dtype=torch.float64), priors)


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_candidate_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"got {k}, expected at least 1"):
        top_k_bound(torch.zeros(3, 3, dtype=torch.float64), k)


# Lemma 2


def product_variance(rank: int, seed: int, dim: int = 256) -> float:
    """Mean square of the entries of a product of two standard normal matrices; 65 thousand entries of mean 0."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*shape, generator=generator) for shape in ((dim, rank), (rank, dim)))
    return float((left @ right).square().mean())


@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_entries_of_a_random_product_have_its_rank_for_their_variance(rank: int) -> None:
    """Lemma 2. An entry is a sum of `rank` products of variance 1; between seeds the mean square varies by about
    rank sqrt(2 * 2 / dim / rank) (entries share rows and columns), of which five are allowed.
    """
    assert product_variance(rank, seed=rank) == pytest.approx(rank, rel=5 * math.sqrt(4 / (256 * rank)))


@pytest.mark.parametrize(("mean_rank", "activated"), [(8, 2), (8, 24), (6, 40)])
def test_hilora_s_factor_brings_any_number_of_rocs_to_the_variance_of_the_mean_rank(
    mean_rank: int, activated: int
) -> None:
    """The factor sqrt(mean rank / O) of section 3.3 is Lemma 2's sqrt(r / k)."""
    scaled = mean_rank / activated * product_variance(activated, seed=1)
    assert scaled == pytest.approx(product_variance(mean_rank, seed=2), rel=0.25)
