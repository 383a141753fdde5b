"""Eq. 4 of HiLoRA against a plain loop written from the paper, and the weights over its candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hilora.route.candidates import select, sign_sizes
from hilora.types import Route

Table = tuple[Tensor, Tensor, int]


def random_table(seed: int) -> Table:
    """scores (batch, adapter), allowed (adapter,), k; rows lie at different heights, some below 0 altogether."""
    rng = np.random.default_rng(seed)
    batch, adapter = int(rng.integers(1, 6)), int(rng.integers(1, 13))
    height = rng.choice([0.0, 3.0, -2.0, -6.0, -9.5, -25.0], size=(batch, 1))
    scores = rng.normal(height, rng.choice([0.3, 2.0]), size=(batch, adapter))
    if seed % 3 == 0:
        scores = scores.round()  # equal scores, and zeros
    allowed = rng.random(adapter) < 0.7
    allowed[rng.integers(adapter)] = True
    return torch.from_numpy(scores).float(), torch.from_numpy(allowed), int(rng.integers(1, 7))


tables = pytest.mark.parametrize("table", [random_table(seed) for seed in range(60)], ids=range(60))


def equation_4(scores: list[float], allowed: list[bool], k: int) -> list[int]:
    """The candidates of one row, best first, in the paper's words; c is rounded up and the pool is the cap."""
    pool = [i for i in range(len(scores)) if allowed[i]]
    best = max(scores[i] for i in pool)
    ranked = sorted(pool, key=lambda i: -scores[i])  # stable: equal scores in the pool's order
    if best > 0:
        return [i for i in ranked if scores[i] > 0]
    c = max(abs(best), k)
    return ranked[: math.ceil(c)]


def route_of(scores: Tensor, allowed: Tensor, k: int) -> Route:
    masked = scores.masked_fill(~allowed, -torch.inf)
    return select(masked, sign_sizes(masked, k), allowed.expand(len(scores), -1))


def chosen(route: Route, row: int) -> list[int]:
    return route.ids[row][route.weights[row] > 0].tolist()


@tables
def test_candidates_are_those_of_equation_4(table: Table) -> None:
    scores, allowed, k = table
    route = route_of(scores, allowed, k)
    for row in range(len(scores)):
        assert chosen(route, row) == equation_4(scores[row].tolist(), allowed.tolist(), k)


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([0.5, -1.0, 2.0, 0.0], 3, [2, 0]),  # a positive score: only positive ones, however few; 0 is not positive
        ([0.5, -1.0, -2.0, -3.0], 3, [0]),
        ([0.0, -1.0, -2.0, -3.0], 3, [0, 1, 2]),  # max 0 is not positive: c = k
        ([-1.5, -1.6, -1.7, -1.8], 3, [0, 1, 2]),  # |max| below k
        ([-4.0, -5.0, -6.0, -7.0, -8.0, -9.0], 3, [0, 1, 2, 3]),  # c = 4 > k
        ([-4.1, -5.0, -6.0, -7.0, -8.0, -9.0], 3, [0, 1, 2, 3, 4]),  # 4.1 is rounded up
        ([-90.0, -91.0], 3, [0, 1]),  # the pool is all there is
        ([-0.2], 3, [0]),
    ],
)
def test_candidates_by_hand(scores: list[float], k: int, expected: list[int]) -> None:
    route = route_of(torch.tensor([scores]), torch.ones(len(scores), dtype=torch.bool), k)
    assert chosen(route, 0) == expected


def test_random_tables_meet_both_cases_of_equation_4() -> None:
    """Rows with a positive score, rows with c = k, rows with c > k, rows capped by the pool."""
    kinds = set()
    for scores, allowed, k in map(random_table, range(60)):
        for row in scores[:, allowed]:
            best, pool = float(row.max()), len(row)
            c = math.ceil(max(abs(best), k))
            kinds.add("positive" if best > 0 else "pool" if c > pool else "k" if c == k else "more")
    assert kinds == {"positive", "k", "more", "pool"}


def test_sizes_count_adapters_that_are_not_masked() -> None:
    scores = torch.tensor([[-9.0, -torch.inf, -8.5, -torch.inf], [-torch.inf, 2.0, 1.0, -torch.inf]])
    assert sign_sizes(scores, 3).tolist() == [2, 2]


@pytest.mark.parametrize("size", [1, 4, 15])
@tables
def test_a_masked_adapter_is_never_selected(table: Table, size: int) -> None:
    scores, allowed, k = table
    for route in (
        route_of(scores, allowed, k),
        select(scores, torch.full((len(scores),), float(size)), allowed.expand(len(scores), -1)),
    ):
        assert bool(allowed[route.ids[route.weights > 0]].all())


@tables
def test_a_masked_adapter_changes_nothing(table: Table) -> None:
    """The route is that of a pool without it."""
    scores, allowed, k = table
    kept = allowed.nonzero()[:, 0]
    route = route_of(scores, allowed, k)
    without = route_of(scores[:, kept], torch.ones(len(kept), dtype=torch.bool), k)
    assert torch.equal(route.weights, without.weights)
    for row in range(len(scores)):
        assert chosen(route, row) == kept[without.ids[row][without.weights[row] > 0]].tolist()


@tables
def test_weights_are_the_softmax_over_the_candidates(table: Table) -> None:
    scores, allowed, k = table
    route = route_of(scores, allowed, k)
    assert route.weights.sum(1).tolist() == pytest.approx([1.0] * len(scores), abs=1e-5)
    for row in range(len(scores)):
        candidates = equation_4(scores[row].tolist(), allowed.tolist(), k)
        own = np.array([scores[row, i].item() for i in candidates])
        pi = np.exp(own - own.max()) / np.exp(own - own.max()).sum()
        got = route.weights[row][: len(candidates)].tolist()
        assert got == pytest.approx(pi.tolist(), rel=1e-4, abs=1e-30)
        assert not bool(route.weights[row][len(candidates) :].any())  # the rest is padding


@tables
def test_scores_are_those_of_the_ids_best_first(table: Table) -> None:
    scores, allowed, k = table
    route = route_of(scores, allowed, k)
    for row in range(len(scores)):
        ids = chosen(route, row)
        own = route.scores[row][: len(ids)].tolist()
        assert own == [scores[row, i].item() for i in ids]
        assert own == sorted(own, reverse=True)


def test_a_candidate_of_vanishing_weight_is_not_padding() -> None:
    route = select(torch.tensor([[300.0, 1.0, -5.0]]), torch.tensor([2.0]), torch.ones(1, 3, dtype=torch.bool))
    assert chosen(route, 0) == [0, 1]
    assert route.weights[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("score", [2.0, 0.0, -4.5])
@pytest.mark.parametrize("adapter", [3, 40, 300])
def test_equal_scores_keep_the_order_of_the_pool(score: float, adapter: int) -> None:
    route = route_of(torch.full((4, adapter), score), torch.ones(adapter, dtype=torch.bool), 3)
    num_chosen = adapter if score > 0 else min(adapter, max(3, math.ceil(-score)))
    for row in range(4):
        assert chosen(route, row) == list(range(num_chosen))


@tables
def test_a_row_is_routed_alone_as_in_any_batch(table: Table) -> None:
    scores, allowed, k = table
    together = route_of(scores, allowed, k)
    for row in range(len(scores)):
        alone = route_of(scores[row : row + 1], allowed, k)
        assert chosen(together, row) == chosen(alone, 0)
        width = alone.ids.shape[1]
        torch.testing.assert_close(together.weights[row, :width], alone.weights[0], rtol=1e-6, atol=0)


def test_select_changes_nothing_it_was_given() -> None:
    scores, allowed = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, True]])
    select(scores, torch.tensor([2.0]), allowed)
    assert scores.tolist() == [[1.0, 2.0, 3.0]]
    assert allowed.tolist() == [[True, False, True]]
