"""Searches for the best of many adapters: the exact one is exact, the indexed one misses next to none."""

from __future__ import annotations

import math
import sys
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hilora.errors import HiloraError, InputError, UnknownNameError
from hilora.methods.lookup import get_method
from hilora.route import indexed, nearest
from hilora.route.features import Features
from hilora.route.nearest import Exact, Indexed, make_search
from hilora.route.router import Query
from hilora.route.samples import Collection
from hilora.route.tied import Tied, TiedGaussian, gaussian_router


def world(count: int, dim: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Means with a falling spectrum, and prompts near some of them."""
    g = torch.Generator().manual_seed(seed)
    spread = 4.0 * torch.arange(1, dim + 1) ** -0.5
    means = torch.randn(count, dim, generator=g) * spread
    near = torch.randint(count, (rows,), generator=g)
    return means, means[near] + torch.randn(rows, dim, generator=g) * 0.5


def slow_top(means: Tensor, offset: Tensor, row: Tensor, k: int, allowed: Tensor) -> list[tuple[int, float]]:
    """Each adapter's score by itself, in Python floats, equal for equal ones; the k best."""
    scores, asked = [], row.tolist()
    for i, mean in enumerate(means.tolist()):  # PyTorch's dot product depends on where in memory a mean lies
        if allowed[i]:
            terms = [a * b - b * b / 2 for a, b in zip(asked, mean, strict=True)]
            scores.append((-math.fsum([*terms, float(offset[i])]), i))
    return [(i, -score) for score, i in sorted(scores)[:k]]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    dim=st.integers(1, 9),
    k=st.integers(1, 20),
    seed=st.integers(0, 99),
    twins=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_exact_search_is_a_loop_over_all_adapters(
    count: int, dim: int, k: int, seed: int, twins: bool, share: float
) -> None:
    means, prompts = world(count, dim, 4, seed)
    if twins:  # more equal ones than the search has slack for
        means[count // 2 :] = means[0].clone()
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, generator=g) * (not twins)
    allowed = torch.rand(4, count, generator=g) < share if share < 1 else torch.ones(1, count).bool().expand(4, -1)
    scores, ids = Exact(means, offset).top(prompts, k, allowed)
    assert scores.shape == ids.shape == (4, min(k, count))
    for row in range(4):
        expected = slow_top(means, offset, prompts[row], k, allowed[row])
        found = [(i, s) for i, s in zip(ids[row].tolist(), scores[row].tolist(), strict=True) if s > -np.inf]
        assert [i for i, _ in found] == [i for i, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-9)


def test_many_equal_adapters_keep_the_pools_order() -> None:
    means, prompts = world(1, 5, 3)
    scores, ids = Exact(means.expand(200, -1).contiguous()).top(prompts, 4, torch.ones(3, 200).bool())
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    assert (scores == scores[:, :1]).all()


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    means, prompts = world(500, 32, 300)
    allowed = torch.ones(1, 500).bool().expand(300, -1)
    search = Exact(means)
    scores, ids = search.top(prompts, 5, allowed)
    for row in (0, 255, 256, 299):
        own_scores, own_ids = search.top(prompts[row : row + 1], 5, allowed[:1])
        assert torch.equal(own_scores[0], scores[row])
        assert torch.equal(own_ids[0], ids[row])
    assert search.top(prompts[:0], 5, allowed[:0])[1].shape == (0, 5)


@pytest.mark.parametrize("dim", [16, 160])
def test_an_index_finds_what_the_exact_search_finds(dim: int) -> None:
    means, prompts = world(3000, dim, 200)
    offset = torch.rand(3000)
    for mask in (torch.ones(1, 3000).bool().expand(200, -1), torch.rand(200, 3000) < 0.5):
        scores, ids = Exact(means, offset).top(prompts, 8, mask)
        found_scores, found_ids = Indexed(means, offset).top(prompts, 8, mask)
        agree = (ids[:, :, None] == found_ids[:, None, :]).any(2).double().mean()
        assert agree > 0.99
        same = ids == found_ids
        assert torch.equal(scores[same], found_scores[same])


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_an_index_under_masks_of_any_size_misses_next_to_none(share: float) -> None:
    means, prompts = world(3000, 16, 100)
    mask = torch.rand(100, 3000, generator=torch.Generator().manual_seed(0)) < share
    ids, found = Exact(means).top(prompts, 8, mask)[1], Indexed(means).top(prompts, 8, mask)[1]
    assert (ids[:, :, None] == found[:, None, :]).any(2).double().mean() > 0.99


def test_a_router_with_an_index_can_be_copied() -> None:
    model = TiedGaussian(0.2, "indexed")
    means, prompts = world(2500, 8, 3)
    model.whitening_, model.mean_, model.log_det_ = torch.eye(8), means, 0.0
    everyone = torch.ones(3, 2500).bool()
    first = model.top(prompts, 4, everyone)
    assert isinstance(model.nearest, Indexed)
    again = deepcopy(model).top(prompts, 4, everyone)
    assert torch.equal(first[1], again[1])


def test_a_router_is_fitted_with_the_search_it_was_given_and_again_with_a_new_one(monkeypatch: Any) -> None:
    monkeypatch.setattr(nearest, "INDEX_FROM", 40)
    g = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(40, 12, generator=g)
    query, everyone, order = Query(["x"] * 40, centres), torch.ones(40, 40).bool(), torch.arange(40)
    router = gaussian_router("tied", "top", 2, None, 0.1, "indexed")
    assert isinstance(router, Tied)
    for own in (order, order.flip(0)):
        known = Collection([Features(c + torch.randn(6, 12, generator=g)) for c in centres[own]])
        router.fit(known)
        assert isinstance(vars(router.model_)["nearest"], Indexed)  # made by now, not at the first prompt
        assert torch.equal(router(query, everyone).ids[:, 0], own)
    assert isinstance(Tied(2).fit(known).model_.nearest, Exact)
    model = TiedGaussian(0.1).fit([own.embeddings for own in known.held])
    assert torch.equal(model.top(centres, 1, everyone)[1][:, 0], order.flip(0))
    model.fit([centre + torch.randn(6, 12, generator=g) for centre in centres])
    assert torch.equal(model.top(centres, 1, everyone)[1][:, 0], order)


def test_an_index_under_a_mask_that_leaves_few_is_exact() -> None:
    means, prompts = world(3000, 16, 20)
    mask = torch.zeros(20, 3000).bool()
    mask[:, ::500] = True
    mask[0] = False
    scores, ids = Exact(means).top(prompts, 8, mask)
    found_scores, found_ids = Indexed(means).top(prompts, 8, mask)
    assert torch.equal(scores, found_scores)
    finite = scores.isfinite()
    assert finite.sum(1).tolist() == [0] + [6] * 19
    assert torch.equal(ids[finite], found_ids[finite])


def test_two_halves_find_almost_all(monkeypatch: Any) -> None:
    monkeypatch.setattr(indexed, "WHOLE_UP_TO", 3000)
    means, prompts = world(4000, 24, 100)
    search = Indexed(means)
    assert len(search.parts) == 2
    assert sum(part.ntotal for part in search.parts) == 4000
    everyone = torch.ones(1, 4000).bool().expand(100, -1)
    agree = (
        Exact(means).top(prompts, 8, everyone)[1][:, :, None] == search.top(prompts, 8, everyone)[1][:, None]
    ).any(2)
    assert agree.double().mean() > 0.97


def test_an_index_without_faiss_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(HiloraError, match=r"pip install 'hilora\[index\]'"):
        Tied(search="indexed")
    Tied(search="exact")
    with pytest.raises(HiloraError, match=r"pip install 'hilora\[index\]'"):
        make_search("indexed", torch.randn(nearest.INDEX_FROM, 4))
    assert isinstance(make_search("indexed", torch.randn(10, 4)), Exact)  # too few for an index


def test_the_best_of_a_tied_gaussian_are_those_of_its_scores() -> None:
    g = torch.Generator().manual_seed(0)
    samples = [torch.randn(6, 12, generator=g) + 2 * torch.randn(12, generator=g) for _ in range(40)]
    query = torch.randn(30, 12, generator=g) * 2
    model = TiedGaussian(0.2).fit(samples)
    scores, ids = model.top(query, 5, torch.ones(30, 40).bool())
    expected = model.score(query).sort(dim=1, descending=True)
    assert torch.equal(ids, expected.indices[:, :5])
    assert torch.allclose(scores, expected.values[:, :5], atol=1e-5)
    again = model.fit(samples[:20])  # nothing of the earlier fit is left
    assert int(again.top(query, 5, torch.ones(30, 20).bool())[1].max()) < 20


def test_a_tied_router_gives_the_weights_of_the_softmax_over_its_candidates() -> None:
    g = torch.Generator().manual_seed(0)
    known = Collection([Features(torch.randn(6, 12, generator=g) + i) for i in range(8)])
    router = Tied(3).fit(known)
    query = torch.randn(5, 12, generator=g) * 3
    allowed = torch.ones(5, 8).bool()
    allowed[1, 2:] = False
    allowed[2] = False
    route = router(Query([""] * 5, query), allowed)
    scores = router.model_.score(query).masked_fill(~allowed, -torch.inf)
    for row in range(5):
        best = scores[row].sort(descending=True, stable=True)
        size = min(3, int(allowed[row].sum()))
        assert route.ids[row, :size].tolist() == best.indices[:size].tolist()
        expected = torch.softmax(best.values[:size], 0) if size else torch.empty(0)
        assert torch.allclose(route.weights[row, :size], expected, atol=1e-5)
        assert (route.weights[row, size:] == 0).all()


def test_searches_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"^Unknown search 'fast'\. .*Known: exact, indexed"):
        get_method("hilora", covariance="tied", candidates="top", search="fast")
    with pytest.raises(InputError, match=r"^An index needs one covariance for all adapters\. Use covariance='tied'"):
        get_method("hilora", search="indexed")
