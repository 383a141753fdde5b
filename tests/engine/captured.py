"""Graphs are captured whole, and never again; `test_compiled` runs this in a process of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hilora import METHODS, HiLoRA, Pool
from hilora.engine.compiled.options import Compile
from hilora.engine.kernels.top_rocs import top_rocs

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "abba xyz", "qrs"]
FREE = {"eos_token_id": None}
MERGED = ("adapter-soup", "lego", "lorahub", "merged")
Build = Callable[..., HiLoRA]


@pytest.fixture
def build(shared_pool: Callable[[str], tuple[Any, Pool]], tokenizer: Any, embedder: Any) -> Build:
    def make(method: str, kind: str = "llama", **options: Any) -> HiLoRA:
        model, pool = shared_pool(kind)
        return HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder, **options)

    return make


def texts(router: HiLoRA) -> list[str]:
    labels = {"labels": ["alpha", "beta"]} if router.planner.method.name == "oracle" else {}
    return [answer.text for answer in router.generate(PROMPTS[:2], max_new_tokens=9, **FREE, **labels)]


@pytest.fixture(params=["aot_eager", "inductor"])
def captured(request: Any, build: Build) -> HiLoRA:
    """Graphs that torch captures; those that inductor compiles are for one size."""
    rows, tokens = ((2, 8), (32, 64)) if request.param == "aot_eager" else ((4,), (64,))
    sizes = Compile(rows=rows, tokens=tokens, slots=2, backend=request.param)
    router = build("hilora-plus", packed=False, compile=sizes)
    router.compile()
    return router


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of inductor's own
def test_thirty_batches_are_served_by_the_graphs_that_are_there(build: Build, captured: HiLoRA) -> None:
    plain, rng = build("hilora-plus"), random.Random(5)
    assert captured.lanes.fixed is not None
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(30):
            prompts = [rng.choice(PROMPTS) + " " + rng.choice(PROMPTS) for _ in range(rng.randint(1, 4))]
            given = {"max_new_tokens": rng.randint(1, 12), "seed": rng.randint(0, 9), "batch_size": rng.randint(1, 4)}
            given |= {"deny": rng.choice([None, ["alpha"], ["beta", "gamma"]])}
            wanted = [answer.text for answer in plain.generate(prompts, **FREE, **given)]
            assert [answer.text for answer in captured.generate(prompts, **FREE, **given)] == wanted
    assert captured.lanes.fixed.taken > 30


def test_the_choice_of_rocs_may_be_an_operation_of_its_own(build: Build) -> None:
    """As it is on a GPU."""
    router = build("hilora-plus", compile=Compile(rows=(2,), tokens=(32,), slots=4, backend="aot_eager"))
    assert router.lanes.fixed is not None
    router.lanes.fixed.operation = top_rocs
    router.compile()
    assert texts(router) == texts(build("hilora-plus"))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("base", *MERGED)])
def test_every_composer_is_captured_whole(build: Build, method: str) -> None:
    router = build(method, compile=Compile(rows=(2,), tokens=(32,), slots=4, backend="aot_eager"))
    router.compile()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert texts(router) == texts(build(method))
