"""Conformal candidate sets, the lead that tells seen from unseen, and routing without masked adapters."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import InputError
from hilora.route.apart import route_apart
from hilora.route.conformal import conformal_sizes, own_surprises, surprises, threshold
from hilora.route.features import Features, hash_terms
from hilora.route.novelty import UNSEEN_SHARE, leads, seen_above
from hilora.route.posterior import Posterior
from hilora.route.retriever import Retriever
from hilora.route.router import Gaussian, Query, Router
from hilora.route.samples import Collection
from hilora.route.tied import Tied

ADAPTERS, DIM = 6, 12


def test_a_surprise_is_the_negative_log_posterior_among_the_allowed() -> None:
    logits = torch.randn(5, ADAPTERS, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(5, ADAPTERS, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[:, 0] = True
    found = surprises(logits, allowed)
    for row in range(5):
        total = sum(math.exp(logits[row, i]) for i in range(ADAPTERS) if allowed[row, i])
        for i in range(ADAPTERS):
            want = -math.log(math.exp(logits[row, i]) / total) if allowed[row, i] else math.inf
            assert float(found[row, i]) == pytest.approx(want, abs=1e-5)
    owner = torch.tensor([0, 3, 1, 5, 2])
    assert own_surprises(logits, owner).tolist() == pytest.approx(
        [float(surprises(logits)[row, i]) for row, i in enumerate(owner.tolist())]
    )


@settings(deadline=None)
@given(st.lists(st.floats(0, 50), max_size=60), st.floats(0.001, 0.999))
def test_the_threshold_lets_in_the_least_share_that_the_promise_needs(values: list[float], alpha: float) -> None:
    """At least (n + 1)(1 - alpha) of n values lie at or below it, and it is the smallest such value."""
    needed = (len(values) + 1) * (1 - alpha)
    limit = threshold(values, alpha)
    if math.isinf(limit):
        assert needed > len(values)
    else:
        assert limit in values
        assert sum(v <= limit for v in values) >= needed - 1e-6
        assert sum(v < limit for v in values) < needed


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_what_is_no_share_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        threshold([1.0], alpha)


@pytest.mark.parametrize("alpha", [0.2, 0.1, 0.05])
def test_coverage_of_exchangeable_prompts_is_what_is_promised(alpha: float) -> None:
    """However wrong the posterior: here it is twice too sure."""
    stream = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        owner = torch.from_numpy(stream.integers(0, 8, 400))
        logits = torch.from_numpy(stream.normal(size=(400, 8)))
        logits[torch.arange(400), owner] += 2
        own = own_surprises(2 * logits, owner)
        limit = threshold(own[:200].tolist(), alpha)
        covered.append((own[200:] <= limit).double().mean())
    assert 1 - alpha - 0.004 < np.mean(covered) < 1 - alpha + 1 / 201 + 0.004


def test_a_set_is_never_empty_where_an_adapter_is_allowed() -> None:
    logits = torch.zeros(3, ADAPTERS)
    allowed = torch.ones(3, ADAPTERS, dtype=torch.bool)
    allowed[1] = False
    allowed[2, 1:] = False
    assert conformal_sizes(logits, allowed, 0.1).tolist() == [1, 0, 1]
    assert conformal_sizes(logits, allowed, math.inf).tolist() == [ADAPTERS, 0, 1]


def test_a_set_holds_what_is_as_likely_among_the_allowed_as_the_limit_asks_or_likelier() -> None:
    """An adapter that is not allowed takes no share of the posterior, and the limit itself is inside."""
    logits = torch.tensor([[9.0, 2.0, 2.0, 1.0, -5.0, -9.0]])
    allowed = torch.tensor([[False, True, True, True, True, True]])
    ranked = surprises(logits, allowed)[0].sort().values.tolist()
    assert ranked[0] == ranked[1] < 1  # with the first, none would be that likely
    for limit, size in ((ranked[0], 2), (ranked[2], 3), (ranked[2] - 1e-4, 2), (ranked[4], 5)):
        assert conformal_sizes(logits, allowed, limit).tolist() == [size]


def test_the_lead_is_the_best_allowed_score_above_the_mean_of_all() -> None:
    scores = torch.randn(4, ADAPTERS, generator=torch.Generator().manual_seed(2))
    allowed = torch.rand(4, ADAPTERS, generator=torch.Generator().manual_seed(3)) < 0.5
    allowed[0], allowed[1, 0] = False, True
    found = leads(scores, allowed)
    assert float(found[0]) == 0
    for row in range(1, 4):
        own = [float(scores[row, i]) for i in range(ADAPTERS) if allowed[row, i]]
        assert float(found[row]) == pytest.approx(max(own) - float(scores[row].mean()), abs=1e-5)
    torch.testing.assert_close(leads(scores + 7), leads(scores), rtol=1e-4, atol=1e-5)


def test_few_held_out_samples_are_called_unseen() -> None:
    values = np.random.default_rng(0).normal(size=500).tolist()
    limit = seen_above(values)
    assert limit is not None
    assert np.mean(np.array(values) <= limit) == pytest.approx(UNSEEN_SHARE, abs=0.005)


@pytest.mark.parametrize("count", [20, 21, 49])
def test_of_few_held_out_samples_one_is_called_unseen(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    limit = seen_above(values.tolist())
    assert limit is not None
    assert (values <= limit).sum() == 1


@pytest.mark.parametrize("count", [50, 51, 99, 100, 119, 520])
def test_no_more_held_out_samples_are_called_unseen_than_is_said(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    limit = seen_above(values.tolist())
    assert limit is not None
    assert UNSEEN_SHARE - 1 / count < np.mean(values <= limit) <= UNSEEN_SHARE


@pytest.mark.parametrize("count", [0, 1, 19])
def test_too_few_held_out_samples_do_not_say_what_is_unseen(count: int) -> None:
    assert seen_above([1.0] * count) is None


@pytest.mark.parametrize(
    "router",
    [Gaussian(), Tied(), Posterior(), Retriever()],
    ids=["own", "tied", "posterior", "mean"],
)
def test_routing_apart_leaves_the_router_as_it_was(router: Router) -> None:
    """Its copies share what it learned."""
    generator = torch.Generator().manual_seed(5)
    terms = [hash_terms([f"{'ab' * i} {n}" for n in range(10)]) for i in range(ADAPTERS)]
    known = Collection([Features(torch.randn(10, DIM, generator=generator) + i, t) for i, t in enumerate(terms)])
    query = Query(["abab 3"] * 8, torch.randn(8, DIM, generator=generator))
    allowed = torch.rand(8, ADAPTERS, generator=generator) < 0.5
    before = pickle.dumps(router.fit(known))
    route_apart(router, known, query, allowed)
    assert pickle.dumps(router) == before


@pytest.mark.parametrize(
    "router", [Gaussian(ridge=0.1), Tied(), Posterior(terms=False)], ids=["own", "tied", "posterior"]
)
def test_masked_adapters_might_as_well_not_be_there(router: Router) -> None:
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(ADAPTERS, DIM, generator=generator)
    samples = [Features(c + 0.5 * torch.randn(10, DIM, generator=generator)) for c in centres]
    query = Query(["x"] * 8, torch.randn(8, DIM, generator=generator))
    allowed = torch.ones(8, ADAPTERS, dtype=torch.bool)
    allowed[2:5, :2] = False
    allowed[5:7, 3:] = False
    allowed[7] = False
    known = Collection(samples)
    found = route_apart(router.fit(known), known, query, allowed)
    assert not found.weights[7].any()
    for row in range(7):
        kept = allowed[row].nonzero()[:, 0]
        few = Collection([samples[i] for i in kept.tolist()])
        assert query.embedding is not None
        alone = Query(["x"], query.embedding[row : row + 1])
        want = router.fit(few)(alone, torch.ones(1, len(kept), dtype=torch.bool))
        used = want.weights[0] > 0
        got = found.weights[row] > 0
        assert found.ids[row][got].tolist() == kept[want.ids[0][used]].tolist()
        assert found.weights[row][got].tolist() == pytest.approx(want.weights[0][used].tolist(), rel=1e-4)
