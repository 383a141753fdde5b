"""Routing several prompts: lists of adapters for all or for each, merged adapters, notes, what is called seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hilora import METHODS, Planner, Pool, get_method
from hilora.engine.last_token import LastToken
from hilora.engine.thread import engine_of
from hilora.errors import InputError, UnknownNameError
from hilora.merge.average import Average
from hilora.methods import DEFAULT_METHOD
from hilora.route.experts import sum_scores, witness_scores
from hilora.route.novelty import UNSEEN_SHARE, leads

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132"]
OWN = ["alpha", "beta", "gamma", "delta"]
Plan = Callable[..., Planner]


@pytest.fixture
def pool(shared_pool: Any) -> Pool:
    found: Pool = shared_pool("llama")[1]
    return found


def with_base(planner: Planner, model: Any, tokenizer: Any) -> Planner:
    """A planner that can route by a pass of a base model, if its method does."""
    if planner.method.needs_base:
        planner.base = LastToken(model, tokenizer, engine_of(model, 0))
    return planner


@pytest.fixture
def make(shared_pool: Any, pool: Pool, tokenizer: Any, embedder: Any) -> Plan:
    model = shared_pool("llama")[0]
    return lambda method, **options: with_base(
        Planner(pool, get_method(method, **options), embedder), model, tokenizer
    )


def labels(method: str, names: list[str]) -> dict[str, Any]:
    return {"labels": names} if method == "oracle" else {}


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("oracle", "base", "adapter-soup")])
def test_lists_of_each_prompt_give_what_each_prompt_alone_gives(make: Plan, method: str) -> None:
    planner = make(method)
    deny = [["alpha"], ["beta", "gamma"], [], ["delta"]]
    allow = [["beta", "alpha"], ["alpha", "beta", "gamma"], ["gamma"], OWN]
    together = planner.explain(planner.route(PROMPTS, allow=allow, deny=deny))
    for row, prompt in enumerate(PROMPTS):
        (alone,) = planner.explain(planner.route([prompt], allow=allow[row], deny=deny[row]))
        assert [(c.name, c.rocs) for c in together[row]] == [(c.name, c.rocs) for c in alone]
        if method not in ("merged", "lego", "lorahub"):
            assert {c.name for c in together[row]} <= set(allow[row]) - set(deny[row])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("oracle", "base")])
def test_a_prompt_that_may_use_nothing_is_the_bases_and_the_others_are_not(make: Plan, method: str) -> None:
    planner = make(method)
    routed = planner.route(PROMPTS, deny=[[], OWN, ["alpha"], OWN])
    assert ["no adapter is allowed" in note for note in routed.notes] == [False, True, False, True]
    assert [bool(choices) for choices in planner.explain(routed)] == [True, False, True, False]
    plan = planner.plan(routed, range(4))
    assert not plan.rocs[[1, 3]].any()
    assert torch.isfinite(plan.scale).all()


def test_lists_that_do_not_fit_are_refused(make: Plan) -> None:
    planner = make("hilora")
    with pytest.raises(InputError, match="deny holds 1 lists for 4 prompts"):
        planner.route(PROMPTS, deny=[["alpha"]])
    with pytest.raises(InputError, match="allow mixes names and lists"):
        planner.route(PROMPTS, allow=["alpha", ["beta"]])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"Write \['alpha'\]"):
        planner.route(PROMPTS, allow="alpha")
    with pytest.raises(UnknownNameError, match="Did you mean 'alpha'"):
        planner.route(PROMPTS, deny=[[], [], ["alhpa"], []])


def test_merged_adapters_are_made_of_what_each_prompt_may_use(make: Plan, pool: Pool) -> None:
    planner = make("merged")
    routed = planner.route(PROMPTS, deny=[["alpha"], [], ["alpha"], ["beta", "gamma"]])
    assert routed.route is not None
    first, second, third, fourth = routed.route.ids[:, 0].tolist()
    assert first == third
    assert len({first, second, fourth}) == 3
    kept = [pool.factors(entry.hash) for entry in pool.entries if entry.name != "alpha"]
    entry = routed.source.entries[first]
    for site, (down, up) in Average()(kept).items():
        got = routed.source.factors(entry.hash)[site]
        assert torch.equal(got[0], down)
        assert torch.equal(got[1], up)
    assert routed.source.entries[second].name == "4 adapters merged"
    assert set(routed.source.entries[fourth].name.split("+")) == {"alpha", "delta"}


def test_equal_sets_are_merged_once(make: Plan, monkeypatch: Any) -> None:
    calls = []
    real = Average.__call__
    monkeypatch.setattr(Average, "__call__", lambda self, *a: calls.append(1) or real(self, *a))
    planner = make("merged")
    for _ in range(3):
        routed = planner.route(PROMPTS, deny=[[], ["alpha"], [], ["alpha"]])
        planner.explain(routed)
    assert len(calls) == 2


def test_a_soup_is_made_for_the_call_and_says_of_what(make: Plan) -> None:
    planner = make("adapter-soup", k=2)
    names = [planner.explain(planner.route([prompt]))[0][0].name for prompt in PROMPTS]
    assert [own in name for own, name in zip(OWN, names, strict=True)] == [True] * 4
    assert len({choices[0].name for choices in planner.explain(planner.route(PROMPTS))}) == 1


def test_no_prompt_is_no_route(make: Plan) -> None:
    assert make("hilora").route([]).texts == []


# --- seen or unseen -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(shared_pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The tiny pool with a calibration of its own."""
    path = tmp_path_factory.mktemp("tuned") / "pool"
    opened = Pool.open(shutil.copytree(shared_pool("llama")[1].path, path))
    opened.tune(always=True)
    return opened


def verdicts(planner: Planner, texts: list[str]) -> list[bool | None]:
    """Whether a prompt is called seen; one word for all adapters that serve it."""
    found = []
    for choices in planner.explain(planner.route(texts)):
        (seen,) = {choice.seen for choice in choices}
        found.append(seen)
    return found


def test_prompts_of_the_pools_tasks_are_seen_as_often_as_is_said_and_others_are_not(
    tuned: Pool, embedder: Any, tiny: Any
) -> None:
    planner = Planner(tuned, get_method(DEFAULT_METHOD), embedder)
    _, scores = witness_scores(tuned.samples())
    assert tuned.calibration is not None
    held = leads(sum_scores(scores, tuned.calibration.weights))
    threshold = planner.method.router.seen_above_ if planner.method.router else None
    assert threshold is not None
    share = max(UNSEEN_SHARE, 1 / len(held))
    assert (held > threshold).float().mean() >= 1 - share
    fresh = [text for task in tiny.tasks for text in tiny.texts(task, 50, seed=9)]
    # somewhat more of these: a pool so small knows the share by one or two samples
    assert sum(map(bool, verdicts(planner, fresh))) >= (1 - 5 * share) * len(fresh)
    rng = np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(32, 127, size=40))) for _ in range(50)]
    assert verdicts(planner, ["hi", "HELLO, THERE!", "%$%& ()", *noise]).count(False) == 53


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("hilora-plus", "base", "oracle")])
def test_a_method_whose_scores_are_not_calibrated_says_nothing_of_seen(
    tuned: Pool, shared_pool: Any, tokenizer: Any, embedder: Any, method: str
) -> None:
    planner = with_base(Planner(tuned, get_method(method), embedder), shared_pool("llama")[0], tokenizer)
    assert verdicts(planner, ["hi", *PROMPTS]) == [None] * 5


def test_a_chat_is_routed_as_its_last_full_message_and_what_follows_it(make: Plan) -> None:
    planner = make("hilora-plus")
    full, other = "abab baab abba aaa " * 3, "zzy xyz zyx yxyx " * 3
    chat = [{"role": "user", "content": text} for text in (other, full, "go on")]
    routed = planner.route([chat, f"{full}\ngo on", chat[:2], full])
    together, as_text, alone, as_text_alone = planner.explain(routed)
    assert together == as_text
    assert alone == as_text_alone
    assert routed.texts == [f"{full}\ngo on", f"{full}\ngo on", full, full]
    assert ["2 user messages" in note for note in routed.notes] == [True, False, False, False]


def test_what_a_router_does_not_look_at_has_no_note(make: Plan) -> None:
    chat = [{"role": "user", "content": text} for text in ("abab baab abba", "go on")]
    assert make("merged").route([chat]).notes == make("base").route([chat]).notes == [""]
    assert "routed on" not in make("hilora").route([chat], deny=OWN).notes[0]


def test_the_middle_of_a_long_text_is_left_out_for_every_router_that_reads(pool: Pool, tiny: Any, make: Plan) -> None:
    class Reads(tiny.embedder):  # type: ignore[misc, name-defined]
        room = 40
        spans = staticmethod(lambda text: [(i, i + 1) for i in range(len(text))])

    long = "zzy xyz " * 20 + "abab baab abba aaa abab baab abba"
    for method in ("hilora", "hilora-plus", "mixture"):
        planner = Planner(pool, get_method(method), Reads())
        routed = planner.route([long, long[-40:]])
        assert planner.explain(routed)[0][0].name == "alpha"
        assert ["left out" in note for note in routed.notes] == [True, False]
        assert routed.texts == [long, long[-40:]]
        unbounded = make(method)
        assert unbounded.explain(unbounded.route([long]))[0][0].name == "beta"
