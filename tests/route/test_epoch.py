"""Under an epoch, routes are a function of it and of the adapters that a row may use, however the pool came about."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import InputError
from hilora.route import parts
from hilora.route.epoch import Epoch, learn_epoch
from hilora.route.experts import WEIGHTS, Experts, calibrate
from hilora.route.features import Features, Terms, hash_terms
from hilora.route.gaussian import OwnGaussian
from hilora.route.grown import GrownExperts
from hilora.route.near import judge_near
from hilora.route.novelty import leads
from hilora.route.posterior import Posterior
from hilora.route.regrow import regrown
from hilora.route.retriever import Retriever
from hilora.route.router import Gaussian, Query
from hilora.route.samples import Collection
from hilora.route.tied import Tied
from hilora.types import Route

DIM, ADAPTERS = 8, 10
WORDS = ["red", "green", "blue", "white", "black", "brown", "pink", "grey", "gold", "plum"]
TEXTS = ["is it red or not, case 3?", "plum and gold", "none of these", "green 1, green 2, case 4?", ""]
laws = settings(deadline=None, max_examples=15, derandomize=True)
Make = Callable[[], Any]


def adapter(number: int, terms: bool = True, count: int = 9) -> Features:
    generator = torch.Generator().manual_seed(number)
    vectors = 2 * torch.randn(1, DIM, generator=generator) + torch.randn(count, DIM, generator=generator)
    texts = [f"is it {WORDS[number % ADAPTERS]} or {'not' * (n % 3)}, case {n} of {number}?" for n in range(count)]
    return Features(vectors, hash_terms(texts) if terms else None)


EVERYONE = [adapter(i, terms=i != 3, count=(9, 3, 14)[i % 3]) for i in range(ADAPTERS)]
"""Some have no terms, some few samples."""
ROUTERS: dict[str, Make] = {
    "own": Gaussian,
    "own, ridge": lambda: Gaussian("top", ridge=1e-2),
    "tied": lambda: Tied(4),
    "cosine": Retriever,
    "posterior": Posterior,
    "no terms": lambda: Posterior(terms=False),
    "base": lambda: Posterior(fallback="base", k=1),
    "conformal": lambda: Posterior(candidates="conformal", alpha=0.2),
    "near": lambda: Posterior(near=3, many=3),
    "near, no terms": lambda: Posterior(terms=False, near=2, many=4),
    "near, conformal": lambda: Posterior(candidates="conformal", alpha=0.2, near=4, many=5),
}


def epoch_of(samples: Sequence[Features]) -> Epoch:
    return Epoch.of("key", learn_epoch(samples))


@cache
def learned(members: int) -> Epoch:
    """Of so many."""
    return epoch_of([adapter(i, count=14) for i in range(members)])


@pytest.fixture(scope="module")
def epoch() -> Epoch:
    """Of the first six."""
    return epoch_of(EVERYONE[:6])


def asked() -> Query:
    vectors = torch.randn(len(TEXTS), DIM, generator=torch.Generator().manual_seed(99))
    vectors[0] = EVERYONE[0].embeddings.mean(0)
    return Query(TEXTS, vectors)


def pool_of(members: Sequence[int], epoch: Epoch | None) -> Collection:
    ridge = 1e-3 if epoch is None else epoch.ridge
    return Collection([EVERYONE[i] for i in members], ridge, None, epoch)


def told(route: Route, members: Sequence[int]) -> list[dict[int, tuple[float, float, float]]]:
    """By row and adapter: score, weight and lead."""
    lead = torch.zeros(len(route.ids)) if route.leads is None else route.leads
    return [
        {members[int(i)]: (float(s), float(w), float(lead[row])) for i, s, w in zip(*columns, strict=True) if w > 0}
        for row, columns in enumerate(zip(route.ids, route.scores, route.weights, strict=True))
    ]


def assert_alike(found: list[Any], want: list[Any]) -> None:
    assert [list(row) for row in found] == [list(row) for row in want]  # the same adapters, in the same order
    for row, other in zip(found, want, strict=True):
        for name in row:
            assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5)


def routed(router: Any, members: Sequence[int], usable: Sequence[int] | None = None) -> list[Any]:
    allowed = torch.tensor([usable is None or i in usable for i in members]).expand(len(TEXTS), -1)
    return told(router(asked(), allowed), members)


histories = st.lists(st.sets(st.integers(0, ADAPTERS - 1), min_size=1), min_size=2, max_size=5)


@pytest.mark.parametrize("name", ROUTERS)
@laws
@given(histories=histories, sizes=st.booleans())
def test_however_a_pool_came_about_it_routes_as_one_that_is_fitted_with_the_epoch(
    name: str, histories: list[set[int]], sizes: bool, epoch: Epoch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if sizes:  # late parts are put together at once
            patch.setattr(parts, "LEAST", 0)
        pools = [sorted(members) for members in histories]
        router: Any = ROUTERS[name]().fit(pool_of(pools[0], epoch))
        for before, now in pairwise(pools):
            old = routed(router, before)
            grown = regrown(router, pool_of(before, epoch), pool_of(now, epoch))
            assert grown is not None
            assert_alike(routed(router, before), old)  # what others use stays as it is
            router = grown
        assert_alike(routed(router, pools[-1]), routed(ROUTERS[name]().fit(pool_of(pools[-1], epoch)), pools[-1]))


@pytest.mark.parametrize("name", ROUTERS)
@laws
@given(usable=st.sets(st.integers(0, ADAPTERS - 1)), others=st.sets(st.integers(0, ADAPTERS - 1), min_size=1))
def test_adapters_that_a_row_may_not_use_do_not_exist_for_it(
    name: str, usable: set[int], others: set[int], epoch: Epoch
) -> None:
    with_others, alone = sorted(usable | others), sorted(usable)
    router = ROUTERS[name]().fit(pool_of(with_others, epoch))
    if alone:
        assert_alike(routed(router, with_others, alone), routed(ROUTERS[name]().fit(pool_of(alone, epoch)), alone))
    else:
        assert routed(router, with_others, alone) == [{}] * len(TEXTS)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_fit_from_nothing_is_the_epoch_of_exactly_these_adapters(mixed: bool) -> None:
    members = [i for i in range(ADAPTERS) if mixed or EVERYONE[i].terms is not None]
    samples = [EVERYONE[i] for i in members]
    epoch, calibration = epoch_of(samples), calibrate(samples)
    assert epoch.calibration == calibration
    query, allowed = asked(), torch.ones(len(TEXTS), len(members), dtype=torch.bool)
    texts = Features(query.embedding, hash_terms(TEXTS))  # type: ignore[arg-type]
    plain = Experts(calibration.weights).fit(samples)
    scores = plain.score(texts)
    every = torch.arange(len(members))
    grown = GrownExperts.of(epoch, calibration.weights, True).over(samples, -torch.ones_like(every))
    posterior, lead = grown.judge(texts, allowed)
    torch.testing.assert_close(posterior, torch.log_softmax(scores, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lead, leads(scores), rtol=1e-4, atol=1e-4)  # the mean adapter is the adapters' mean
    for ridge in (1e-4, 1e-2):
        own = OwnGaussian(ridge).fit([each.embeddings for each in samples])
        assert epoch.volume(ridge) == pytest.approx(own.volume_)


@pytest.mark.parametrize("members", [6, 90])  # spelling's Gaussian is the dual one, then the plain one
@pytest.mark.parametrize("terms", [True, False])
@laws
@given(usable=st.lists(st.booleans(), min_size=ADAPTERS, max_size=ADAPTERS), late=st.integers(0, ADAPTERS))
def test_those_near_a_text_are_judged_as_among_all(members: int, terms: bool, usable: list[bool], late: int) -> None:
    """They are the best by meaning, and each has the share of the posterior that it has beside the others of them."""
    model = GrownExperts.of(learned(members), WEIGHTS, terms)
    new = torch.full((ADAPTERS,), -1)
    first = ADAPTERS - late
    model = model.over(EVERYONE[:first], new[:first])
    model = model.over(EVERYONE[first:], torch.tensor([*range(first), *new[first:]]))
    texts = Features(asked().embedding, hash_terms(TEXTS))  # type: ignore[arg-type]
    allowed = torch.tensor(usable).expand(len(TEXTS), -1)
    count = max(1, sum(usable) // 2)
    if not any(usable):
        return
    near = judge_near(model, texts, allowed, count)
    meaning = model.witnesses_["meaning"].score(texts)[:, 1:].masked_fill(~allowed, -torch.inf)
    assert near.ids.tolist() == meaning.topk(count).indices.sort(1).values.tolist()
    only = torch.zeros_like(allowed).scatter(1, near.ids, True)
    posterior, lead = model.judge(texts, only)
    torch.testing.assert_close(near.posterior, posterior.gather(1, near.ids), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(near.lead, lead, rtol=1e-3, atol=1e-3)


def test_a_row_that_may_use_few_is_routed_as_without_a_short_list(epoch: Epoch) -> None:
    members = list(range(ADAPTERS))
    pool, query = pool_of(members, epoch), asked()
    allowed = torch.ones(len(TEXTS), ADAPTERS, dtype=torch.bool)
    allowed[::2, 4:] = False
    one, other = Posterior().fit(pool)(query, allowed), Posterior(near=4, many=4).fit(pool)(query, allowed)
    for row in range(0, len(TEXTS), 2):
        chosen = one.weights[row] > 0
        size = int(chosen.sum())
        assert one.ids[row, :size].tolist() == other.ids[row, :size].tolist()
        torch.testing.assert_close(one.weights[row, :size], other.weights[row, :size])  # products in two orders
        assert not other.weights[row, size:].any()


@pytest.mark.parametrize("adapters", [4, 90])  # spelling's Gaussian is the dual one, then the plain one
def test_the_mean_adapter_says_the_mean_of_what_all_say(adapters: int) -> None:
    samples = [adapter(i, count=14) for i in range(adapters)]
    epoch = epoch_of(samples)
    texts = Features(asked().embedding, hash_terms(TEXTS))  # type: ignore[arg-type]
    for name, witness in Experts(epoch.calibration.weights).fit(samples).witnesses_.items():
        want = witness.score(texts).double().mean(1)
        torch.testing.assert_close(epoch.witnesses[name].score(texts)[:, 0].double(), want, rtol=1e-4, atol=1e-2)


def test_a_newcomers_phrases_are_as_common_as_it_makes_them(epoch: Epoch) -> None:
    """Words that nobody of the epoch used speak for who uses them, and say nothing of anybody else."""
    own = Features(torch.zeros(9, DIM), hash_terms(["zebra crossing"] * 9))
    other = Features(torch.zeros(20, DIM), hash_terms(["yak herd"] * 20))
    grown = GrownExperts.of(epoch, epoch.calibration.weights, True).over([own, other], torch.tensor([-1, -1]))
    one, two = hash_terms(["zebra"]), hash_terms(["quagga"])
    (said,) = grown.witnesses_["phrases"].score(Features(torch.zeros(1, DIM), one))
    count = max(int(epoch.witnesses["phrases"].count_), 9)  # type: ignore[attr-defined]
    assert said.tolist() == pytest.approx([0, math.log1p(9 / ((9 + 0.5) / (count + 1))), 0], abs=1e-5)
    (said,) = grown.witnesses_["phrases"].score(Features(torch.zeros(1, DIM), two))
    assert said.tolist() == [0, 0, 0]


def without_outlines(own: Features) -> Features:
    assert own.terms is not None
    return Features(own.embeddings, Terms(own.terms.characters, own.terms.phrases, own.terms.text))


def test_an_epoch_of_before_there_were_outlines_looks_at_none() -> None:
    some = [adapter(i, count=14) for i in range(4)]
    old, new = [without_outlines(own) for own in some], adapter(7)
    kept = learn_epoch(old)
    for name in ("calibration", "plain"):  # as they were written then
        kept[f"{name}|weights"] = kept[f"{name}|weights"][:3]
    epoch = Epoch.of("key", kept)
    assert list(epoch.witnesses) == ["meaning", "spelling", "phrases"]
    texts, every = Features(asked().embedding, hash_terms(TEXTS)), torch.ones(len(TEXTS), 5, dtype=torch.bool)  # type: ignore[arg-type]
    found = [
        GrownExperts.of(epoch, epoch.calibration.weights, True).over([*pool, own], -torch.ones(5, dtype=torch.long))
        for pool, own in ((some, new), (old, without_outlines(new)))
    ]
    for one, other in zip(*(each.judge(texts, every) for each in found), strict=True):
        assert torch.equal(one, other)


def test_under_an_epoch_that_looks_at_outlines_a_newcomer_without_is_judged_by_meaning() -> None:
    looking, new = learned(6), adapter(7)
    empty = GrownExperts.of(looking, looking.calibration.weights, True)
    assert "outline" in empty.witnesses_
    grown = empty.over([without_outlines(new), adapter(8)], -torch.ones(2, dtype=torch.long))
    wordless = empty.over([Features(new.embeddings), adapter(8)], -torch.ones(2, dtype=torch.long))
    assert grown.worded_.tolist() == [False, True]
    texts, every = Features(asked().embedding, hash_terms(TEXTS)), torch.ones(len(TEXTS), 2, dtype=torch.bool)  # type: ignore[arg-type]
    for one, other in zip(grown.judge(texts, every), wordless.judge(texts, every), strict=True):
        assert torch.equal(one, other)


def test_what_is_kept_of_an_epoch_and_its_adapters_comes_back(epoch: Epoch) -> None:
    every = -torch.ones(ADAPTERS, dtype=torch.long)
    empty = GrownExperts.of(epoch, epoch.calibration.weights, True)
    grown = empty.over(EVERYONE[:4], every[:4]).over(EVERYONE[4:], torch.tensor([*range(4), *every[4:]]))
    again = empty.restored(grown.tensors())
    texts = Features(asked().embedding, hash_terms(TEXTS))  # type: ignore[arg-type]
    allowed = torch.ones(len(TEXTS), ADAPTERS, dtype=torch.bool)
    for one, other in zip(grown.judge(texts, allowed), again.judge(texts, allowed), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("terms", [True, False])
def test_an_epoch_of_next_to_nothing_routes_all_the_same(count: int, terms: bool) -> None:
    few = epoch_of([adapter(i, terms, count=2) for i in range(count)])
    assert math.isnan(few.volume(1e-3))
    for make in ROUTERS.values():
        found = routed(make().fit(pool_of(range(ADAPTERS), few)), range(ADAPTERS))
        assert all(math.isfinite(number) for row in found for own in row.values() for number in own)


def test_an_epoch_of_nobody_and_one_of_another_version_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        learn_epoch([])
    kept = learn_epoch(EVERYONE[:3])
    with pytest.raises(ValueError, match="version 9"):
        Epoch.of("key", kept | {"version": torch.tensor(9)})
    with pytest.raises(KeyError):
        Epoch.of("key", {name: tensor for name, tensor in kept.items() if name != "spreads"})


def test_what_may_not_hold_is_fitted_anew(epoch: Epoch) -> None:
    """Without an epoch, or under another, only what is each adapter's own grows."""
    for name, make in ROUTERS.items():
        fitted = make().fit(pool_of([0, 1], None))
        grown = regrown(fitted, pool_of([0, 1], None), pool_of([0, 1, 2], None))
        assert (grown is not None) == (name == "cosine")
        assert regrown(fitted, pool_of([0, 1], None), pool_of([0, 1], epoch)) is None
        assert regrown(fitted, pool_of([0, 1], None), pool_of([0, 1], None)) is fitted
