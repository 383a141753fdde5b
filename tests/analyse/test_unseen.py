"""Lemma 3 and Theorem 2 against the paper's formula in dense matrices, quadrature and random draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from hilora.analyse.bounds import Normals, bhattacharyya, log_densities, normals, top_k_bound
from hilora.analyse.unseen import Chernoff, chernoff, expected_scores, fit_unseen
from hilora.errors import InputError
from hilora.route.gaussian import OwnGaussian
from hilora.route.tied import TiedGaussian

FORMS = [OwnGaussian(1e-2), TiedGaussian(0.2)]
form = pytest.mark.parametrize("model", FORMS, ids=["own", "tied"])


def some(num: int, dim: int, seed: int, *, apart: float = 1.0, level: float = 0.5, spread: float = 1.0) -> Normals:
    """Random Gaussians with the same variance `level` outside their two directions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Normals(draw(num, dim) * apart, torch.full((num, dim), level).double(), draw(num, 2, dim) * spread)


def parted(everything: Normals) -> tuple[Normals, Normals]:
    """The first as the unseen task, the others as the pool."""
    q, pool = ([part[at] for part in vars(everything).values()] for at in (slice(0, 1), slice(1, None)))
    return Normals(*q), Normals(*pool)


def dense(pool: Normals, i: int) -> tuple[np.ndarray, np.ndarray]:
    return pool.mean[i].numpy(), (torch.diag(pool.floor[i]) + pool.factor[i].T @ pool.factor[i]).numpy()


def distribution(pool: Normals, i: int) -> MultivariateNormal:
    mean, covariance = dense(pool, i)
    return MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance))


def printed(q: Normals, pool: Normals, i: int, j: int, alphas: Sequence[float]) -> np.ndarray:
    """log E_q[(p_j / p_i)^a] by Lemma 3 as the paper prints it; NaN where M is not positive definite."""
    (mq, sq), (mi, si), (mj, sj) = dense(q, 0), dense(pool, i), dense(pool, j)
    pq, pi, pj = (np.linalg.inv(each) for each in (sq, si, sj))
    a = np.asarray(alphas)
    m = pq + a[:, None, None] * (pj - pi)  # (alpha, dim, dim)
    h = pq @ mq + a[:, None] * (pj @ mj - pi @ mi)
    k = 0.5 * mq @ pq @ mq + a / 2 * (mj @ pj @ mj - mi @ pi @ mi)
    vq, vi, vj = (np.linalg.slogdet(each)[1] for each in (sq, si, sj))
    inside = np.einsum("ad,ad->a", h, np.linalg.solve(m, h[..., None])[..., 0]) / 2
    found = -a / 2 * vj + a / 2 * vi - vq / 2 - np.linalg.slogdet(m)[1] / 2 + inside - k
    return np.where(np.linalg.eigvalsh(m).min(1) > 0, found, np.nan)


def best_printed(q: Normals, pool: Normals, i: int, j: int) -> float:
    """The smallest of Lemma 3 on a fine grid of alpha, and the limit 0."""
    return float(np.nanmin(printed(q, pool, i, j, np.linspace(0, 1, 1001)[1:].tolist()), initial=0.0))


# Lemma 3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.floats(0.2, 3), st.floats(0.1, 2), st.integers(0, 10**6))
def test_the_low_rank_moment_is_lemma_3_at_the_best_alpha(dim: int, apart: float, spread: float, seed: int) -> None:
    q, pool = parted(some(4, dim, seed, apart=apart, spread=spread))
    found = chernoff(q, pool)
    for j in {0, 1, 2} - {found.nearest}:
        moment, a = float(found.log_moment[j]), float(found.alpha[j])
        assert moment <= 0 <= a <= 1
        if a > 0:
            assert moment == pytest.approx(float(printed(q, pool, found.nearest, j, [a])[0]), rel=1e-6, abs=1e-8)
        assert moment <= best_printed(q, pool, found.nearest, j) + 1e-9


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_moment_is_the_integral_of_the_likelihood_ratio_by_quadrature(dim: int, seed: int) -> None:
    q, pool = parted(some(3, dim, seed, apart=1.5, spread=0.5))
    found = chernoff(q, pool)
    j = 1 - found.nearest
    axis = torch.linspace(-16, 16, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    density = distribution(q, 0).log_prob(grid)
    ratio = log_densities(pool, grid) @ torch.tensor([-1.0, 1.0] if j else [1.0, -1.0]).double()
    integral = float((density + found.alpha[j] * ratio).exp().sum()) * float(axis[1] - axis[0]) ** dim
    assert 0 < float(found.alpha[j]) <= 1
    assert math.exp(found.log_moment[j]) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("a", [0.2, 0.5, 0.7])
def test_the_chernoff_coefficient_of_b_4_is_printed_with_alpha_and_its_rest_exchanged(a: float) -> None:
    """For q = p_i the moment is the integral of p_i^(1-a) p_j^a; the paper weighs the covariances the other way."""
    pool = some(2, 1, seed=3)
    (mi, si), (mj, sj) = dense(pool, 0), dense(pool, 1)
    axis = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    log_density = log_densities(pool, axis[:, None]) - 0.5 * math.log(2 * math.pi)
    step = float(axis[1] - axis[0])
    integral = float((log_density @ torch.tensor([1 - a, a], dtype=torch.float64)).exp().sum()) * step

    def coefficient(weight_i: float, weight_j: float) -> float:
        s = weight_i * si + weight_j * sj
        volume = si ** (weight_i / 2) * sj ** (weight_j / 2) / s**0.5
        return float((volume * np.exp(-a * (1 - a) / 2 * (mj - mi) ** 2 / s))[0, 0])

    assert coefficient(a, 1 - a) == pytest.approx(integral, rel=1e-8)
    assert printed(Normals(pool.mean[:1], pool.floor[:1], pool.factor[:1]), pool, 0, 1, [a])[0] == pytest.approx(
        math.log(integral), rel=1e-8
    )
    if a != 0.5:
        assert coefficient(1 - a, a) != pytest.approx(integral, rel=1e-2)


def test_a_seen_task_with_equal_covariances_has_alpha_one_half_and_theorem_1_s_bound() -> None:
    pool = some(4, 6, seed=0)
    pool = Normals(pool.mean, pool.floor, pool.factor[:1].expand(4, -1, -1))
    for i in range(4):
        found = chernoff(Normals(pool.mean[i : i + 1], pool.floor[:1], pool.factor[:1]), pool)
        rivals = torch.arange(4) != i
        assert found.nearest == i
        assert found.alpha[rivals].tolist() == pytest.approx([0.5] * 3, abs=1e-6)
        distance = bhattacharyya(pool)
        torch.testing.assert_close(-found.log_moment, distance[i], rtol=1e-9, atol=1e-9)
        assert found.miss(1) == pytest.approx(float(top_k_bound(distance, 1)[i]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_for_a_seen_task_it_is_at_least_as_sharp_as_theorem_1(dim: int, seed: int) -> None:
    """Theorem 1 is alpha = 1/2 throughout."""
    pool = some(4, dim, seed)
    found = chernoff(Normals(pool.mean[:1], pool.floor[:1], pool.factor[:1]), pool)
    assert found.nearest == 0
    assert bool((found.log_moment <= -bhattacharyya(pool)[0] + 1e-9).all())


def test_alpha_stays_where_the_moment_is_finite() -> None:
    """q is wide where i* is narrow: M is positive definite only for small alpha."""
    one = torch.eye(2, dtype=torch.float64)[:1]
    mean = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 4.0]]).double()
    pool = Normals(mean, torch.full((3, 2), 0.1).double(), torch.stack([2 * one, 0 * one, one]))
    q, rest = parted(pool)
    found = chernoff(q, rest, target=0)
    a = float(found.alpha[1])
    assert math.isnan(printed(q, rest, 0, 1, [0.5])[0])
    assert not math.isnan(printed(q, rest, 0, 1, [a])[0])
    assert float(found.log_moment[1]) == pytest.approx(best_printed(q, rest, 0, 1), abs=2e-3)


# Theorem 2


@pytest.mark.parametrize("dim", [2, 30])
@form
def test_unseen_tasks_of_samples_give_the_dense_formula(model: OwnGaussian | TiedGaussian, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, dim, generator=generator).double()
    samples = [centre + 0.5 * torch.randn(12, dim, generator=generator).double() for centre in centres]
    pool = normals(model.fit(samples[1:]))
    q = fit_unseen(model, samples[0])
    found = chernoff(q, pool)
    for j in set(range(4)) - {found.nearest}:
        if found.alpha[j] > 0:
            expected = printed(q, pool, found.nearest, j, [float(found.alpha[j])])
            assert float(found.log_moment[j]) == pytest.approx(float(expected[0]), rel=1e-5, abs=1e-7)
    if isinstance(model, TiedGaussian):
        white = samples[0] @ model.whitening_.double()
        shrunk = 0.8 * torch.cov(white.T) + 0.2 * torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(torch.from_numpy(dense(q, 0)[1]), shrunk, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.floats(0.3, 4), st.integers(0, 10**6))
def test_random_unseen_prompts_miss_no_more_often_than_theorem_2_allows(
    num: int, dim: int, apart: float, seed: int
) -> None:
    q, pool = parted(some(num + 1, dim, seed, apart=apart))
    found, count = chernoff(q, pool), 1000
    scores = log_densities(pool, q.draw(count, torch.Generator().manual_seed(seed))[0])
    ahead = (scores >= scores[:, found.nearest, None]).sum(1) - 1
    bounds = [found.miss(k) for k in (1, 2, 4)]
    assert bounds == sorted(bounds, reverse=True)
    for k, bound in zip((1, 2, 4), bounds, strict=True):
        assert 0 <= bound <= 1
        assert float((ahead >= k).double().mean()) <= bound + 5 * math.sqrt(bound * (1 - bound) / count) + 5 / count


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_nearest_adapter_has_the_smallest_divergence(dim: int, seed: int) -> None:
    q, pool = parted(some(5, dim, seed))
    pool = Normals(pool.mean, pool.floor * torch.linspace(0.5, 2, dim).double(), pool.factor)
    divergence = torch.stack([kl_divergence(distribution(q, 0), distribution(pool, i)) for i in range(4)])
    found = expected_scores(q, pool)
    torch.testing.assert_close(found - found[0], divergence[0] - divergence, rtol=1e-8, atol=1e-8)
    assert chernoff(q, pool).nearest == int(divergence.argmin())


@form
def test_moving_and_rotating_everything_changes_no_moment(model: OwnGaussian | TiedGaussian) -> None:
    generator = torch.Generator().manual_seed(1)
    samples = [
        centre + torch.randn(12, 20, generator=generator).double() for centre in torch.randn(4, 1, 20).double()
    ]
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    found = []
    for texts in (samples, [own @ rotation + 2 for own in samples]):
        pool = normals(model.fit(texts[1:]))
        found.append(chernoff(fit_unseen(model, texts[0]), pool))
    torch.testing.assert_close(found[0].log_moment, found[1].log_moment, rtol=1e-3, atol=1e-4)


def test_rivals_of_too_few_samples_count_as_bounded_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [3 * i + torch.randn(count, 8, generator=generator).double() for i, count in enumerate((12, 12, 12, 3))]
    model = OwnGaussian(0.1).fit(samples)
    found = chernoff(fit_unseen(model, samples[0] + 0.1), normals(model))
    assert found.log_moment[3] == 0
    assert bool((found.log_moment[1:3] < -1).all())
    assert found.miss(1) == 1
    alone = chernoff(fit_unseen(model, samples[0]), normals(model), target=3)
    assert alone.log_moment.tolist() == [0, 0, 0, 0]
    assert alone.miss(8) == pytest.approx(3 / 8)


@pytest.mark.parametrize("count", [0, 1, 4])
@form
def test_an_unseen_task_of_too_few_samples_is_refused(model: OwnGaussian | TiedGaussian, count: int) -> None:
    model.fit([torch.eye(6), torch.eye(6) + 1])
    with pytest.raises(InputError, match=f"has {count} sample"):
        fit_unseen(model, torch.eye(6)[:count])


def test_a_pool_or_a_diagonal_gaussian_is_no_unseen_task() -> None:
    pool = some(3, 4, seed=0)
    crooked = Normals(pool.mean[:1], torch.arange(1.0, 5).double()[None], pool.factor[:1])
    for q in (pool, crooked):
        with pytest.raises(InputError, match="q is one Gaussian"):
            chernoff(q, pool)


def test_fewer_than_one_candidate_is_refused() -> None:
    with pytest.raises(InputError, match="got 0, expected at least 1"):
        Chernoff(0, torch.zeros(2).double(), torch.zeros(2).double()).miss(0)
