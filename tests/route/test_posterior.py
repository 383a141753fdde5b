"""Calibrated posterior weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.route.experts import WEIGHTS, Calibration, Experts, fit_weights
from hilora.route.features import Features, hash_terms
from hilora.route.posterior import BROAD_K, BROAD_TEMPERATURE, Posterior
from hilora.route.router import Query
from hilora.route.samples import Collection

DIM, ADAPTERS = 16, 6
WORDS = ["red", "green", "blue", "white", "black", "brown"]
"""What the samples of each adapter mention, where they have words."""


def tasks(samples: int, spread: float = 1.0, seed: int = 0) -> tuple[list[Features], Tensor]:
    """Samples of Gaussian tasks around random centres, and the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(ADAPTERS, DIM, generator=generator)
    noise = torch.randn(ADAPTERS, samples, DIM, generator=generator) * spread
    return [Features(own) for own in centres[:, None] + noise], centres


def worded(samples: list[Features]) -> list[Features]:
    """The same with words, as a pool keeps them."""
    texts = [[f"a {word} thing, number {n}" for n in range(len(samples[0]))] for word in WORDS]
    return [Features(own.embeddings, hash_terms(text)) for own, text in zip(samples, texts, strict=True)]


def asked(embedding: Tensor, text: str = "x") -> Query:
    return Query([text] * len(embedding), embedding)


def everything(batch: int) -> Tensor:
    return torch.ones(batch, ADAPTERS, dtype=torch.bool)


@pytest.mark.parametrize("terms", [True, False])
def test_weights_are_the_softmax_of_the_experts_over_the_k_best(terms: bool) -> None:
    samples = tasks(20)[0]
    samples = worded(samples) if terms else samples
    weights = {"meaning": 0.1, "spelling": 0.01, "phrases": 0.05}
    router = Posterior(k=3, floor=0.0, terms=terms, fallback="none").fit(
        Collection(samples, calibration=Calibration(weights))
    )
    texts = [f"{word} or {other}?" for word in WORDS for other in ("blue", "pink")]
    vectors = torch.randn(len(texts), DIM, generator=torch.Generator().manual_seed(1))
    route = router(Query(texts, vectors), everything(len(texts)))
    query = Features(vectors, hash_terms(texts) if terms else None)
    scores = router.model_.score(query).double()
    if terms:
        torch.testing.assert_close(scores, Experts(weights).fit(samples).score(query).double())
    for row in range(len(texts)):
        best = scores[row].argsort(descending=True)[:3].tolist()
        total = sum(math.exp(scores[row, i]) for i in best)
        whole = math.log(sum(math.exp(scores[row, i]) for i in range(ADAPTERS)))
        assert route.ids[row].tolist() == best
        want = [math.exp(scores[row, i]) / total for i in best]
        assert route.weights[row].tolist() == pytest.approx(want, rel=1e-3)
        assert route.scores[row].tolist() == pytest.approx([float(scores[row, i]) - whole for i in best], abs=1e-3)


def test_the_best_weight_predicts_how_often_the_best_is_right() -> None:
    samples, centres = tasks(20, spread=1.6)
    router = Posterior(k=ADAPTERS, floor=0.0, terms=False, fallback="none").fit(Collection(samples))
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, ADAPTERS, (2000,), generator=generator)
    query = centres[label] + 1.6 * torch.randn(2000, DIM, generator=generator)
    route = router(asked(query), everything(2000))
    right = (route.ids[:, 0] == label).double().mean()
    assert 0.5 < right < 0.95
    assert abs(float(route.weights[:, 0].double().mean()) - float(right)) < 0.05


def test_adapters_far_behind_the_best_are_left_out() -> None:
    samples, centres = tasks(20, spread=0.3)
    router = Posterior(k=4, floor=0.2, terms=False, fallback="none").fit(Collection(samples))
    query = torch.cat([centres, (centres[:1] + centres[1:2]) / 2])
    route = router(asked(query), everything(len(query)))
    counts = (route.weights > 0).sum(1).tolist()
    assert counts[:ADAPTERS] == [1] * ADAPTERS
    assert all(float(w) >= 0.2 * float(row.max()) - 1e-6 for row in route.weights for w in row if w > 0)


@pytest.mark.parametrize("floor", [0.02, 0.3, 1.0])
def test_the_floor_is_a_share_of_the_best_that_is_allowed(floor: float) -> None:
    samples = tasks(20, spread=1.6)[0]
    query = torch.randn(30, DIM, generator=torch.Generator().manual_seed(1))
    every = Posterior(k=ADAPTERS, floor=0.0, terms=False, fallback="none").fit(Collection(samples))(
        asked(query), everything(30)
    )
    allowed = everything(30)
    allowed[torch.arange(30), every.ids[:, 0]] = False  # the likeliest of all is no measure then
    weights = torch.zeros(30, ADAPTERS).scatter(1, every.ids, every.weights) * allowed
    route = Posterior(k=ADAPTERS, floor=floor, terms=False, fallback="none").fit(Collection(samples))(
        asked(query), allowed
    )
    for row in range(30):
        want = {i for i in range(ADAPTERS) if weights[row, i] >= floor * weights[row].max()}
        assert set(route.ids[row][route.weights[row] > 0].tolist()) == want
        assert route.weights[row].sum() == pytest.approx(1)


def test_masked_adapters_get_nothing_and_rows_do_not_touch_each_other() -> None:
    router = Posterior(terms=False, fallback="none").fit(Collection(tasks(20)[0]))
    query = torch.randn(8, DIM, generator=torch.Generator().manual_seed(3))
    allowed = torch.rand(8, ADAPTERS, generator=torch.Generator().manual_seed(4)) < 0.5
    allowed[0] = False
    route = router(asked(query), allowed)
    for row in range(8):
        used = route.ids[row][route.weights[row] > 0]
        assert bool(allowed[row][used].all())
        alone = router(asked(query[row : row + 1]), allowed[row : row + 1])
        assert used.tolist() == alone.ids[0][alone.weights[0] > 0].tolist()
        assert route.weights[row].sum() == pytest.approx(float(bool(allowed[row].any())))


def test_words_decide_where_embeddings_say_nothing() -> None:
    alike = [Features(own.embeddings - own.embeddings.mean(0)) for own in tasks(20)[0]]
    query = torch.zeros(ADAPTERS, DIM)
    texts = [f"a {word} thing" for word in WORDS]
    for terms, held in ((True, worded(alike)), (True, alike), (False, worded(alike))):
        known = Collection(held, calibration=Calibration({"meaning": 0.06, "spelling": 0.1, "phrases": 0.5}))
        route = Posterior(terms=terms, floor=0.0, fallback="none").fit(known)(
            Query(texts, query), everything(ADAPTERS)
        )
        if terms and held is not alike:
            assert route.ids[:, 0].tolist() == list(range(ADAPTERS))
            assert route.weights[:, 0].min() > 0.9
        else:  # what is not kept, or not looked at, changes nothing
            assert len(set(route.ids[:, 0].tolist())) == 1
            assert route.weights[:, 0].max() < 0.5


def test_weights_of_the_witnesses_come_with_a_pool_or_are_fitted() -> None:
    samples = tasks(20)[0]
    given = {"meaning": 0.5, "spelling": 0.1, "phrases": 0.2}
    assert Posterior().fit(Collection(samples, calibration=Calibration(given))).model_.weights_ == WEIGHTS | given
    assert Posterior().fit(Collection(samples)).model_.weights_ == fit_weights(samples) != WEIGHTS


def test_too_few_samples_to_hold_out_take_the_default() -> None:
    router = Posterior().fit(Collection([samples.take(torch.arange(2)) for samples in tasks(20)[0]]))
    assert router.model_.weights_ == WEIGHTS


def test_prompts_that_no_adapter_knows_are_served_broadly_or_by_the_base() -> None:
    samples, centres = tasks(20, spread=0.3)
    known = Collection(samples)
    stranger = centres.mean(0, keepdim=True).expand(4, -1) + 0.1 * torch.randn(4, DIM)
    query = asked(torch.cat([centres, stranger]))
    every = everything(len(query.texts))
    same = Posterior(terms=False, fallback="none").fit(known)(query, every)
    broad = Posterior(terms=False, fallback="broad").fit(known)(query, every)
    base = Posterior(terms=False, fallback="base").fit(known)(query, every)
    for row in range(ADAPTERS):  # seen: all alike
        used = same.weights[row][same.weights[row] > 0]
        for route in (broad, base):
            assert route.weights[row][route.weights[row] > 0].tolist() == pytest.approx(used.tolist())
    for row in range(ADAPTERS, ADAPTERS + 4):
        assert int((broad.weights[row] > 0).sum()) == ADAPTERS
        assert broad.weights[row].max() <= same.weights[row].max() + 1e-6
        assert not base.weights[row].any()
    assert broad.leads is not None
    threshold = Posterior(terms=False).fit(known).seen_above_
    assert ((broad.leads > threshold) == (torch.arange(ADAPTERS + 4) < ADAPTERS)).all()


@pytest.mark.parametrize(("k", "broad_k"), [(3, BROAD_K), (BROAD_K + 2, BROAD_K + 2)])
def test_broad_weights_are_the_posterior_at_the_broad_temperature_over_more_adapters(k: int, broad_k: int) -> None:
    generator = torch.Generator().manual_seed(6)
    centres = torch.randn(BROAD_K + 4, DIM, generator=generator)
    samples = [Features(c + 0.3 * torch.randn(20, DIM, generator=generator)) for c in centres]
    router = Posterior(k=k, terms=False).fit(Collection(samples))
    query = centres.mean(0, keepdim=True) + 0.3 * torch.randn(5, DIM, generator=generator)
    route = router(asked(query), torch.ones(5, len(centres), dtype=torch.bool))
    assert route.leads is not None
    assert router.seen_above_ is not None
    assert bool((route.leads <= router.seen_above_).all())
    posterior = torch.log_softmax(router.model_.score(Features(query)).double(), 1)
    assert BROAD_TEMPERATURE > 1  # broad means nearer to each other
    for row in range(5):
        best = posterior[row].argsort(descending=True)[:broad_k]
        powers = [math.exp(float(posterior[row, i]) / BROAD_TEMPERATURE) for i in best]
        assert int((route.weights[row] > 0).sum()) == broad_k
        assert route.ids[row][:broad_k].tolist() == best.tolist()
        want = [power / sum(powers) for power in powers]
        assert route.weights[row][:broad_k].tolist() == pytest.approx(want, rel=1e-3)


def test_a_prompt_is_as_well_known_whatever_else_it_may_use() -> None:
    samples, centres = tasks(20, spread=0.3)
    router = Posterior(terms=False, fallback="base").fit(Collection(samples))
    alone = torch.eye(ADAPTERS, dtype=torch.bool)
    route = router(asked(centres), alone)
    assert route.ids[:, 0].tolist() == list(range(ADAPTERS))
    assert (route.weights[:, 0] == 1).all()
    assert route.leads is not None
    torch.testing.assert_close(route.leads, router(asked(centres), everything(ADAPTERS)).leads)


@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_conformal_candidates_hold_the_right_adapter_as_often_as_promised(alpha: float) -> None:
    samples, centres = tasks(40, spread=1.6)
    router = Posterior(terms=False, candidates="conformal", alpha=alpha, fallback="none").fit(Collection(samples))
    generator = torch.Generator().manual_seed(5)
    label = torch.randint(0, ADAPTERS, (3000,), generator=generator)
    query = centres[label] + 1.6 * torch.randn(3000, DIM, generator=generator)
    route = router(asked(query), everything(3000))
    held = ((route.ids == label[:, None]) & (route.weights > 0)).any(1).double().mean()
    assert 1 - alpha - 0.03 < held < 1 - alpha + 0.06
    sizes = (route.weights > 0).sum(1)
    assert 1 <= sizes.min() < sizes.max()


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"floor": 2.0}, {"floor": -0.1}, {"floor": math.nan}, {"alpha": 0.0}, {"alpha": 1.5}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Posterior(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"candidates": "best"}, {"fallback": "bases"}])
def test_unknown_names_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError):
        Posterior(**wrong)  # type: ignore[arg-type]
