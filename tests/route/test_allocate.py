"""Sharing the budget: what every share obeys, the laws of chance, and that a batch changes nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, multinomial

from hilora.methods.table import ALLOCATIONS
from hilora.route.allocate import Floats, Ints, budget, draw_capped, make_plan, row_stream
from hilora.route.expected import share_expected
from hilora.types import Plan, Route

laws = settings(deadline=None, max_examples=150, derandomize=True)
parts = st.one_of(st.integers(0, 50).map(float), st.sampled_from([1e-38, 1e-12, 1e9]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Ints, int]:
    """weights that sum to 1 (some zero or vanishing), capacity, a total within it."""
    size = draw(st.integers(1, 8))
    raw = np.array(draw(st.lists(parts, min_size=size, max_size=size)))
    raw[draw(st.integers(0, size - 1))] += 1
    capacity = np.array(draw(st.lists(st.integers(1, 40), min_size=size, max_size=size)), dtype=np.int64)
    return raw / raw.sum(), capacity, draw(st.integers(0, int(capacity.sum())))


def largest_remainder(weights: Floats, total: int) -> list[int]:
    """Hamilton's method, for weights whose quotas are exact in binary."""
    quotas = [float(w) * total for w in weights]
    seats = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: -(quotas[i] - seats[i]))
    for i in by_remainder[: total - sum(seats)]:
        seats[i] += 1
    return seats


# both forms


@laws
@given(cases(), st.integers(0, 2**32))
def test_a_drawn_share_spends_the_budget_within_the_ranks(case: tuple[Floats, Ints, int], seed: int) -> None:
    weights, capacity, total = case
    share = draw_capped(weights, capacity, total, np.random.default_rng(seed))
    assert share.sum() == total
    assert bool(((share >= 0) & (share <= capacity)).all())


@laws
@given(cases())
def test_an_expected_share_spends_the_budget_within_the_ranks(case: tuple[Floats, Ints, int]) -> None:
    weights, capacity, total = case
    share = share_expected(weights, capacity, total)
    assert share.sum() == total
    assert bool(((share >= 0) & (share <= capacity)).all())


@laws
@given(cases(), st.integers(0, 2**32))
def test_sharing_changes_nothing_it_was_given(case: tuple[Floats, Ints, int], seed: int) -> None:
    weights, capacity, total = case
    kept = weights.copy(), capacity.copy()
    draw_capped(weights, capacity, total, np.random.default_rng(seed))
    share_expected(weights, capacity, total)
    assert np.array_equal(weights, kept[0])
    assert np.array_equal(capacity, kept[1])


@laws
@given(cases(), st.integers(0, 2**32))
def test_a_zero_weight_gets_nothing_while_others_have_room(case: tuple[Floats, Ints, int], seed: int) -> None:
    weights, capacity, total = case
    total = min(total, int(capacity[weights > 0].sum()))
    assert not draw_capped(weights, capacity, total, np.random.default_rng(seed))[weights == 0].any()
    assert not share_expected(weights, capacity, total)[weights == 0].any()


@laws
@given(cases(), st.integers(0, 2**32))
def test_the_whole_capacity_is_shared_as_it_is(case: tuple[Floats, Ints, int], seed: int) -> None:
    weights, capacity, _ = case
    total = int(capacity.sum())
    assert draw_capped(weights, capacity, total, np.random.default_rng(seed)).tolist() == capacity.tolist()
    assert share_expected(weights, capacity, total).tolist() == capacity.tolist()


# the expected form


@laws
@given(st.lists(st.integers(0, 16), min_size=1, max_size=8), st.integers(0, 60))
def test_with_room_the_expected_share_is_the_largest_remainder(raw: list[int], total: int) -> None:
    raw[0] += 256 - sum(raw)  # exact in binary
    weights = np.array(raw) / 256
    share = share_expected(weights, np.full(len(raw), 1000), total)
    assert share.tolist() == largest_remainder(weights, total)


@laws
@given(cases())
def test_the_expected_share_is_within_one_of_the_capped_quota(case: tuple[Floats, Ints, int]) -> None:
    """Quota: min(t * weight, capacity) with t such that all is shared, found here by bisection."""
    weights, capacity, total = case
    total = min(total, int(capacity[weights > 1e-9].sum()))
    low, high = 0.0, 1e13
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * weights, capacity).sum() < total else (low, middle)
    quota = np.minimum(high * weights, capacity)
    assert np.abs(share_expected(weights, capacity, total) - quota).max() < 1 + 1e-3


@laws
@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.integers(1, 30), st.integers(0, 240))
def test_a_larger_weight_never_expects_less(raw: list[int], rank: int, total: int) -> None:
    weights = np.array(raw) / max(1, sum(raw)) if sum(raw) else np.full(len(raw), 1 / len(raw))
    share = share_expected(weights, np.full(len(raw), rank), min(total, rank * len(raw)))
    for i, j in itertools.permutations(range(len(raw)), 2):
        if raw[i] > raw[j]:
            assert share[i] >= share[j]


@laws
@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 240))
def test_equal_weights_expect_equal_shares_the_first_one_more(size: int, rank: int, total: int) -> None:
    total = min(total, size * rank)
    share = share_expected(np.full(size, 1 / size), np.full(size, rank), total)
    assert share.tolist() == [total // size + (i < total % size) for i in range(size)]


# the drawn form


def test_drawn_shares_follow_the_multinomial_where_no_rank_binds() -> None:
    weights, total, draws = np.array([0.5, 0.3, 0.2]), 3, 20_000
    stream = np.random.default_rng(0)
    capacity = np.full(3, total)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        share = tuple(draw_capped(weights, capacity, total, stream).tolist())
        counts[share] = counts.get(share, 0) + 1
    outcomes = [o for o in itertools.product(range(total + 1), repeat=3) if sum(o) == total]
    assert set(counts) <= set(outcomes)
    expected = [draws * multinomial.pmf(o, total, weights) for o in outcomes]
    assert chisquare([counts.get(o, 0) for o in outcomes], expected).pvalue > 1e-3


def test_over_prompts_the_shares_follow_the_weights() -> None:
    """Through the streams that are used: one per prompt, nothing between them."""
    weights, capacity = np.array([0.6, 0.3, 0.1]), np.full(3, 2)
    shares = sum(draw_capped(weights, capacity, 2, row_stream(0, f"prompt {i}", "rocs")) for i in range(10_000))
    assert chisquare(shares, 20_000 * weights).pvalue > 1e-3


def test_what_exceeds_a_rank_is_drawn_among_those_with_room_by_weight() -> None:
    weights, capacity = np.array([0.8, 0.15, 0.05]), np.array([1, 8, 8])
    stream = np.random.default_rng(1)
    shares = np.stack([draw_capped(weights, capacity, 4, stream) for _ in range(2000)])
    assert (shares[:, 0] == 1).mean() > 0.99
    rest = shares[shares[:, 0] == 1, 1:].sum(0)  # nearly all of 3 draws with chances 3 to 1
    assert chisquare(rest, rest.sum() * np.array([0.75, 0.25])).pvalue > 1e-3


# budget


@laws
@given(st.lists(st.integers(1, 128), min_size=1, max_size=20), st.floats(1e-6, 1.0))
def test_the_budget_is_gamma_of_the_ranks_to_the_nearest_integer_at_least_1(ranks: list[int], gamma: float) -> None:
    total, whole = budget(np.array(ranks), gamma), sum(ranks)
    assert 1 <= total <= whole
    assert abs(total - gamma * whole) <= 0.5 + 1e-9 or (total == 1 and gamma * whole < 0.5)


@pytest.mark.parametrize(
    ("ranks", "gamma", "expected"),
    [([8, 8, 8], 0.4, 10), ([8], 0.4, 3), ([1], 0.01, 1), ([5], 0.5, 3), ([4, 4], 1.0, 8), ([2], 0.1, 1)],
)
def test_budgets_by_hand(ranks: list[int], gamma: float, expected: int) -> None:
    assert budget(np.array(ranks), gamma) == expected  # halves are rounded up


# streams


def start(seed: int, text: str, purpose: str) -> list[int]:
    return row_stream(seed, text, purpose).integers(0, 2**63, size=4).tolist()


@given(st.integers(-(2**70), 2**70), st.text(st.characters(exclude_categories=["Cs"])), st.text("abc"))
@laws
def test_the_same_seed_text_and_purpose_draw_the_same(seed: int, text: str, purpose: str) -> None:
    assert start(seed, text, purpose) == start(seed, text, purpose)


def test_another_seed_text_or_purpose_draws_otherwise() -> None:
    keys = [
        *[(seed, "text", "rocs") for seed in (0, 1, -1, 10, 2**64)],
        *[(0, text, "rocs") for text in ("", "text ", "Text", "text\0", "\0text", "0\0rocs\0text", "täxt")],
        *[(0, "text", purpose) for purpose in ("sample", "roc", "rocs0")],
        (1, "0text", "rocs"),
        (10, "text", "0rocs"),
    ]
    assert len({tuple(start(*key)) for key in keys}) == len(keys)


def test_the_first_draws_of_many_streams_are_uniform() -> None:
    firsts = [row_stream(0, f"prompt {i}", "rocs").random() for i in range(4000)]
    assert chisquare(np.histogram(firsts, bins=20, range=(0, 1))[0]).pvalue > 1e-3


def test_a_lone_surrogate_has_a_stream() -> None:
    row_stream(0, "\ud800", "rocs")


# plans

RANKS = [4, 8, 2, 6, 16, 1]
GAMMA = 0.4


def random_route(seed: int, batch: int, width: int = 5) -> tuple[Route, list[str]]:
    """Rows of 1 to `width` candidates, the rest padding that names other adapters."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(len(RANKS))[:width] for _ in range(batch)])
    sizes = rng.integers(1, width + 1, size=batch)
    used = np.arange(width) < sizes[:, None]
    weights = rng.dirichlet(np.ones(width), size=batch) * used
    weights = weights / weights.sum(1, keepdims=True)
    scores = np.log(np.where(used, weights, 1e-9))
    route = Route(torch.from_numpy(ids), torch.from_numpy(scores).float(), torch.from_numpy(weights).float())
    return route, [f"prompt {rng.integers(100)}" for _ in range(batch)]


def take(route: Route, rows: list[int]) -> Route:
    return Route(route.ids[rows], route.scores[rows], route.weights[rows])


def plan_of(route: Route, texts: list[str], allocation: str = "sampled", seed: int = 0) -> Plan:
    streams = [row_stream(seed, text, "rocs") for text in texts]
    return make_plan(route, RANKS, gamma=GAMMA, share=ALLOCATIONS[allocation], streams=streams)


def row_of(plan: Plan, row: int) -> tuple[dict[int, tuple[float, int]], float]:
    """{adapter: (weight, ROCs)} of what the row uses, and its scale: free of the batch's columns."""
    columns = zip(plan.ids, plan.weights[row].tolist(), plan.rocs[row].tolist(), strict=True)
    return {adapter: (weight, rocs) for adapter, weight, rocs in columns if weight or rocs}, float(plan.scale[row])


both = pytest.mark.parametrize("allocation", ALLOCATIONS)
seeds = pytest.mark.parametrize("seed", range(8))


@both
@seeds
def test_a_row_has_the_same_plan_alone_and_in_any_batch_at_any_place(seed: int, allocation: str) -> None:
    route, texts = random_route(seed, 6)
    whole = plan_of(route, texts, allocation)
    for rows in ([3], [0, 1, 2, 3, 4, 5], [5, 3, 1], [4, 4, 3], [3, 0]):
        part = plan_of(take(route, rows), [texts[row] for row in rows], allocation)
        for place, row in enumerate(rows):
            assert row_of(part, place) == row_of(whole, row)


@both
@seeds
def test_permuting_rows_permutes_the_plan(seed: int, allocation: str) -> None:
    route, texts = random_route(seed, 5)
    order = [2, 0, 4, 1, 3]
    before = plan_of(route, texts, allocation)
    after = plan_of(take(route, order), [texts[row] for row in order], allocation)
    assert after.ids == before.ids
    assert torch.equal(after.ranks, before.ranks)
    for name in ("weights", "rocs", "scale"):
        assert torch.equal(getattr(after, name), getattr(before, name)[order])


@both
@seeds
def test_padding_changes_nothing(seed: int, allocation: str) -> None:
    """Whatever adapters it names, and however wide it is."""
    route, texts = random_route(seed, 4)
    plan = plan_of(route, texts, allocation)
    named = route.ids.masked_fill(route.weights == 0, 0)
    other = Route(
        torch.cat([named, torch.full((4, 3), 5)], dim=1),
        torch.cat([route.scores, torch.full((4, 3), -torch.inf)], dim=1),
        torch.cat([route.weights, torch.zeros(4, 3)], dim=1),
    )
    for row in range(4):
        assert row_of(plan_of(other, texts, allocation), row) == row_of(plan, row)


@both
@seeds
def test_only_candidates_have_weight_or_rocs(seed: int, allocation: str) -> None:
    route, texts = random_route(seed, 5)
    plan = plan_of(route, texts, allocation)
    assert plan.ids == tuple(sorted(set(route.ids[route.weights > 0].tolist())))
    assert plan.ranks.tolist() == [RANKS[i] for i in plan.ids]
    for row in range(5):
        candidates = set(route.ids[row][route.weights[row] > 0].tolist())
        assert set(row_of(plan, row)[0]) == candidates
        outside = [column for column, adapter in enumerate(plan.ids) if adapter not in candidates]
        assert not plan.rocs[row, outside].any()
        assert not plan.weights[row, outside].any()


@both
@seeds
def test_a_row_spends_its_budget_within_the_ranks_and_scales_by_the_papers_factor(seed: int, allocation: str) -> None:
    route, texts = random_route(seed, 5)
    plan = plan_of(route, texts, allocation)
    assert bool((plan.rocs <= plan.ranks).all())
    assert plan.weights.sum(1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    for row in range(5):
        ranks = [RANKS[i] for i in route.ids[row][route.weights[row] > 0].tolist()]
        total = max(1, math.floor(GAMMA * sum(ranks) + 0.5))
        assert int(plan.rocs[row].sum()) == total
        assert float(plan.scale[row]) == pytest.approx(math.sqrt(sum(ranks) / len(ranks) / total), rel=1e-6)


def test_a_rows_stream_is_what_it_was_when_results_were_committed() -> None:
    drawn = {seed: row_stream(seed, "Is it so? \u00e9", "rocs").integers(1000, size=4).tolist() for seed in (0, 1)}
    assert drawn == {0: [761, 480, 789, 788], 1: [40, 340, 511, 897]}


@both
def test_a_row_that_the_base_serves_changes_nothing_for_the_rows_after_it(allocation: str) -> None:
    route, texts = random_route(3, 4)
    none = Route(route.ids, route.scores, route.weights * torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
    plan, whole = plan_of(none, texts, allocation), plan_of(route, texts, allocation)
    for row in (0, 2):
        assert row_of(plan, row) == ({}, 1.0)
    for row in (1, 3):
        assert row_of(plan, row) == row_of(whole, row)


def test_a_plan_says_whether_every_adapter_is_used_whole_or_not_at_all() -> None:
    route, texts = random_route(5, 5)
    every = make_plan(route, RANKS, gamma=1.0)
    assert bool(((every.rocs == 0) | (every.rocs == every.ranks)).all())
    assert bool((every.rocs == 0).any())
    assert every.whole is True
    assert plan_of(route, texts).whole is False
    one = Route(torch.tensor([[5]]), torch.zeros(1, 1), torch.ones(1, 1))  # of rank 1: whatever gamma is
    assert plan_of(one, ["x"]).whole is True


def test_without_normalisation_the_scale_is_1() -> None:
    route, _ = random_route(0, 5)
    assert make_plan(route, RANKS, gamma=1.0, normalise=False).scale.tolist() == [1.0] * 5


def test_the_factor_counts_active_rocs_where_they_are_fewer_than_the_budget() -> None:
    """HiLoRA-ROC: everyone's ROCs are open, k of them are active."""
    everyone = torch.arange(len(RANKS))[None]
    route = Route(everyone, torch.zeros(1, len(RANKS)), torch.full((1, len(RANKS)), 1 / len(RANKS)))
    mean = sum(RANKS) / len(RANKS)
    for active, used in ((24, 24), (1000, sum(RANKS))):
        plan = make_plan(route, RANKS, gamma=1.0, active=active)
        assert plan.rocs[0].tolist() == RANKS
        assert float(plan.scale[0]) == pytest.approx(math.sqrt(mean / used))


def test_gamma_1_opens_every_roc_of_the_candidates_and_draws_nothing() -> None:
    route, _ = random_route(3, 5)
    plan = make_plan(route, RANKS, gamma=1.0)  # no streams are needed
    assert torch.equal(plan.rocs, plan.ranks * (plan.weights > 0))


def test_another_seed_draws_another_plan() -> None:
    route, texts = random_route(1, 6)
    plans = [plan_of(route, texts, seed=seed).rocs.tolist() for seed in (0, 0, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] != plans[3]


def test_planning_changes_nothing_it_was_given() -> None:
    route, texts = random_route(2, 4)
    kept = [part.clone() for part in (route.ids, route.scores, route.weights)]
    plan_of(route, texts)
    assert all(torch.equal(a, b) for a, b in zip((route.ids, route.scores, route.weights), kept, strict=True))
