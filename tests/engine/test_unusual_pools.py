"""What the default method does with pools that say little, as `docs/routing.md` has it: small, untuned, empty."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilora import HiLoRA, Pool
from hilora.analyse.explain import explain
from hilora.analyse.page import render
from hilora.base.embed import describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.route.experts import WEIGHTS, Calibration

PROMPTS = ["abab baab abba aaa", "zzy xyz xyz", "hi"]
OPTIONS = [{}, {"fallback": "base"}, {"fallback": "abstain"}, {"candidates": "conformal"}, {"terms": False}]
Make = Callable[..., Pool]
Build = Callable[..., HiLoRA]


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    return tiny.model("llama")


@pytest.fixture
def make(tmp_path: Path, model: Any, tiny: Any, tokenizer: Any, embedder: Any) -> Make:
    """A pool with an adapter for each of some tasks."""

    def made(*tasks: str, samples: int = 20, worded: tuple[str, ...] = tiny.tasks, tuned: bool = True) -> Pool:
        pool = Pool.create(tmp_path / "pool", describe_model("tiny", model, tokenizer), describe_embedder(embedder))
        for task in tasks:
            folder = tiny.adapter(tmp_path / task, tiny.sites(model, "llama"), seed=ord(task[0]))
            pool.add(task, folder, tiny.texts(task, samples), embedder, terms=task in worded)
        if tuned:
            pool.tune()
        return pool

    return made


@pytest.fixture
def build(model: Any, tokenizer: Any, embedder: Any) -> Build:
    """The default method over a pool, as it lies there."""
    return lambda pool, **options: HiLoRA.from_pretrained(
        model, pool.path, tokenizer=tokenizer, embedder=embedder, **options
    )


def told(router: HiLoRA) -> list[list[tuple[str, float, bool | None]]]:
    """Who serves each prompt, with which weight, and whether it is called seen."""
    answers = router.generate(PROMPTS, max_new_tokens=2)
    return [[(each.name, round(each.weight, 3), each.seen) for each in answer.choices] for answer in answers]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_empty_pool_leaves_everything_to_the_base_and_says_so(
    make: Make, build: Build, options: dict[str, Any]
) -> None:
    answers = build(make(), **options).generate(PROMPTS, max_new_tokens=2)
    assert [answer.choices for answer in answers] == [()] * 3
    assert all("the pool is empty: the base model answered alone" in answer.note for answer in answers)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_adapter_serves_every_prompt_whole_and_nothing_is_called_unseen(
    make: Make, build: Build, options: dict[str, Any]
) -> None:
    router = build(make("alpha"), **options)
    assert told(router) == [[("alpha", 1.0, None)]] * 3
    assert all(answer.rocs == {"alpha": 4} for answer in router.generate(PROMPTS, max_new_tokens=2))
    (denied,) = router.generate("hi", max_new_tokens=2, deny=["alpha"])
    assert (denied.choices, "no adapter is allowed" in denied.note) == ((), True)
    page = render(explain(router.planner, "hi"))
    assert "too few samples to say" in page


def test_of_two_adapters_the_likelier_serves_and_what_fits_neither_better_is_unseen(make: Make, build: Build) -> None:
    router = build(make("alpha", "beta"))
    first, second, _ = told(router)
    assert first == [("alpha", 1.0, True)]
    assert second == [("beta", 1.0, True)]
    (both,) = router.planner.explain(router.planner.route(["abab xyz baab zzy"]))
    assert {(each.name, each.seen) for each in both} == {("alpha", False), ("beta", False)}


def test_few_samples_leave_default_weights_and_nothing_is_called_seen_or_unseen(make: Make, build: Build) -> None:
    pool = make("alpha", "beta", samples=5)
    assert pool.calibration == Calibration(WEIGHTS)
    first, second, third = told(build(pool, fallback="abstain"))
    assert [first[0][::2], second[0][::2]] == [("alpha", None), ("beta", None)]
    assert third
    wide = build(pool, candidates="conformal")
    assert wide.planner.method.router.limit_ == math.inf  # type: ignore[union-attr]
    assert all(len(row) == 2 for row in told(wide))


@pytest.mark.parametrize("worded", [(), ("beta",)], ids=["none", "one"])
def test_without_terms_meaning_alone_decides(make: Make, build: Build, worded: tuple[str, ...]) -> None:
    pool = make("alpha", "beta", "gamma", "delta", worded=worded)
    router = build(pool)
    assert list(router.planner.method.router.model_.witnesses_) == ["meaning"]  # type: ignore[union-attr]
    first, second, _ = told(router)
    assert [first[0][::2], second[0][::2]] == [("alpha", True), ("beta", True)]
    if not worded:
        assert told(build(pool, terms=False)) == told(router)


def test_adapters_with_terms_and_without_are_told_apart_together(make: Make, build: Build) -> None:
    pool = make("alpha", "beta", "gamma", "delta", worded=("alpha", "gamma"))
    router = build(pool)
    model = router.planner.method.router.model_  # type: ignore[union-attr]
    assert list(model.witnesses_) == ["meaning", "spelling", "phrases", "outline"]
    assert sorted(pool.names[i] for i in model.worded_.nonzero()[:, 0].tolist()) == ["alpha", "gamma"]
    first, second, _ = told(router)
    assert [first[0][0], second[0][0]] == ["alpha", "beta"]


def test_an_untuned_pool_is_calibrated_at_the_start_as_tuning_would(make: Make, build: Build) -> None:
    pool = make("alpha", "beta", "gamma", tuned=False)
    assert pool.calibration is None
    before = told(build(pool))
    manifest = (pool.path / "pool.json").read_bytes()
    assert before[0][0][::2] == ("alpha", True)
    assert (pool.path / "pool.json").read_bytes() == manifest
    pool.tune()
    assert told(build(pool)) == before
    pool.fit(always=True)
    assert told(build(pool)) == before


def test_disabled_adapters_are_known_and_never_used(make: Make, build: Build) -> None:
    pool = make("alpha", "beta")
    pool.enable("alpha", False)
    rows = told(build(pool))
    assert [[name for name, *_ in row] for row in rows] == [["beta"]] * 3
    assert rows[0][0][2] is False  # alpha's prompt, and beta does not know it
