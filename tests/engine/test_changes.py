"""Laws of change: a pool, or a plan, that changes while requests run changes what it should, and nothing else."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch.utils._python_dispatch import TorchDispatchMode

from hilora import HiLoRA
from hilora.base.prompts import encode_prompts
from hilora.engine.call import Call
from hilora.engine.joining import requests_of
from hilora.engine.request import Request
from hilora.planner import Routed
from hilora.pool.folder import PoolFolder
from hilora.pool.pool import Pool
from tests.conftest import (
    FakeEmbedder,
    make_pool,
    target_sites,
    task_texts,
    tiny_model,
    tiny_tokenizer,
    write_adapter,
)

MODEL, TOKENIZER = tiny_model("llama"), tiny_tokenizer()
TEXTS = [text for task in ("alpha", "beta", "gamma", "delta") for text in task_texts(task, 3, seed=5)]
"""Prompts of all tasks."""


def request_of(router: HiLoRA, prompt: str, most: int, seed: int = 0) -> Request:
    """A request as `generate` makes it, which nothing ends."""
    (ids,) = encode_prompts([prompt], router.tokenizer)
    options = {"max_new_tokens": most, "eos_token_id": []}
    ((_, _, (request,)),) = requests_of(
        router.lanes, Call(router.planner.route([prompt]), {0: ids}, seed, (), options), [0]
    )
    return request


def finish(router: HiLoRA) -> None:
    loop = router.lanes.engine.loop
    with torch.inference_mode():
        while loop.busy:
            loop.step()
        loop.pause()
    for request in loop.take_ended():
        assert request.error is None


class Changes(RuleBasedStateMachine):
    """Requests come and step while adapters are added, replaced and removed; each keeps the pool that it came to."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.embedder, self.model = FakeEmbedder(), copy.deepcopy(MODEL)
        path = Path(self.folder.name) / "pool"
        self.pool: Pool = make_pool(path, "llama", self.model, self.embedder, ("alpha", "beta"))
        self.asked: list[tuple[PoolFolder, str, int, int, Request]] = []
        self.count = 0

    @initialize(method=st.sampled_from(["hilora", "selection", "mixture"]))
    def begin(self, method: str) -> None:
        self.method, self.view = method, PoolFolder.open(self.pool.path)
        self.router = HiLoRA.from_pretrained(
            self.model, self.view, method, tokenizer=TOKENIZER, embedder=self.embedder
        )
        assert self.router.batching == "open"

    @rule(text=st.sampled_from(TEXTS), most=st.integers(1, 9), seed=st.integers(0, 2))
    def come(self, text: str, most: int, seed: int) -> None:
        request = request_of(self.router, text, most, seed)
        self.asked.append((self.view, text, most, seed, request))
        self.router.lanes.engine.loop.waiting.append(request)

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                self.router.lanes.engine.loop.step()

    @rule(name=st.sampled_from(["alpha", "gamma", "delta"]), rank=st.sampled_from([2, 4]))
    def add(self, name: str, rank: int) -> None:
        self.count += 1
        folder = Path(self.folder.name) / f"adapter-{self.count}"
        write_adapter(folder, target_sites(self.model, "llama"), rank=rank, seed=self.count)
        self.pool.add(name, folder, task_texts(name, 20), self.embedder, replace=True)
        self.change()

    @precondition(lambda self: len(self.pool) > 1)
    @rule(which=st.integers(0, 9))
    def remove(self, which: int) -> None:
        self.pool.remove(self.pool.names[which % len(self.pool)])
        self.change()

    def change(self) -> None:
        self.view = PoolFolder.open(self.pool.path)
        self.router = self.router.over(self.view)

    def teardown(self) -> None:
        finish(self.router)
        assert not self.router.lanes.bank.pins
        for view, text, most, seed, request in self.asked:
            own = HiLoRA.from_pretrained(
                copy.deepcopy(MODEL), view, self.method, tokenizer=TOKENIZER, embedder=self.embedder
            )
            alone = request_of(own, text, most, seed)
            own.lanes.engine.loop.waiting.append(alone)
            finish(own)
            assert request.new == alone.new
        self.folder.cleanup()


TestPoolChanges = pytest.mark.filterwarnings("ignore")(Changes.TestCase)
TestPoolChanges.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


def test_a_plan_that_changes_after_the_first_step_changes_that_answer_from_there_and_no_other(
    shared_pool: Any, embedder: Any
) -> None:
    """What it should be: the tokens of a row alone, whose plan changes at the same step."""
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(copy.deepcopy(model), pool, "hilora-gs", tokenizer=TOKENIZER, embedder=embedder)
    assert router.batching == "open"
    texts, most, at = [TEXTS[0], TEXTS[3], TEXTS[6]], 12, 3
    other = request_of(router, TEXTS[9], most).plan

    def said(texts: list[str], changes: list[bool]) -> list[list[int]]:
        loop = router.lanes.engine.loop
        requests = [request_of(router, text, most) for text in texts]
        with torch.inference_mode():
            loop.waiting.extend(requests)
            while any(len(request.new) < at for request in requests):
                loop.step()
            assert {len(request.new) for request in requests} == {at}
            for request, does in zip(requests, changes, strict=True):
                request.plan = other if does else request.plan
        finish(router)
        return [request.new for request in requests]

    before, after = said(texts, [False] * 3), said(texts, [False, True, False])
    (alone,) = said(texts[1:2], [True])
    assert after == [before[0], alone, before[2]]
    assert alone[:at] == before[1][:at]
    assert alone != before[1]


class Counted(TorchDispatchMode):
    """Operations, counted by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_rows_of_the_base_model_cost_what_they_cost_without_a_pool(tmp_path: Path) -> None:
    """The same operations, though adapters have been at work before, and lie in the bank."""
    embedder, model = FakeEmbedder(), copy.deepcopy(MODEL)
    full = make_pool(tmp_path / "full", "llama", model, embedder)
    empty = Pool.create(tmp_path / "empty", full.base, full.embedder)
    counts = []
    for pool in (full, empty):
        own = copy.deepcopy(MODEL)
        router = HiLoRA.from_pretrained(own, pool, "hilora", tokenizer=TOKENIZER, embedder=embedder)
        assert router.batching == "open"
        router.generate(TEXTS[:3], max_new_tokens=3)
        loop = router.lanes.engine.loop
        for text in TEXTS[:4]:
            (ids,) = encode_prompts([text], TOKENIZER)
            routed = Routed([text], None, router.planner.source, [""])
            call = Call(routed, {0: ids}, 0, (), {"max_new_tokens": 6, "eos_token_id": []})
            loop.waiting.extend(next(requests_of(router.lanes, call, [0]))[2])
        with torch.inference_mode(), Counted() as counted:
            while loop.busy:
                loop.step()
        assert len(loop.take_ended()) == 4
        counts.append(counted.count)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 100
