"""Steps that are captured once: whatever comes, they give what others give, and are never captured again."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from hilora import METHODS, HiLoRA, Pool
from hilora.engine.compiled.held import Fixed
from hilora.engine.compiled.options import Compile
from hilora.engine.rectangle import Rectangle
from hilora.errors import InputError, ModelError

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "abba xyz", "qrs"]
LABELS = ["alpha", "beta", "gamma", "delta", "alpha", "beta"]
FREE = {"eos_token_id": None}
SIZES = Compile(rows=(2, 8), tokens=(32, 64), slots=4, backend="eager")
Build = Callable[..., HiLoRA]


@pytest.fixture
def build(shared_pool: Callable[[str], tuple[Any, Pool]], tokenizer: Any, embedder: Any) -> Build:
    def make(method: str, kind: str = "llama", **options: Any) -> HiLoRA:
        model, pool = shared_pool(kind)
        return HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder, **options)

    return make


def texts(router: HiLoRA, prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
    labels = {"labels": LABELS[: len(prompts)]} if router.planner.method.name == "oracle" else {}
    return [answer.text for answer in router.generate(prompts, max_new_tokens=9, **FREE, **labels, **options)]


MERGED = ("adapter-soup", "lego", "lorahub", "merged")
"""They make their adapters for each call, or once, of the pool's."""


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("base", *MERGED)])
def test_compiled_steps_answer_as_others_do_for_every_method(build: Build, method: str) -> None:
    plain, compiled = build(method), build(method, compile=SIZES)
    assert texts(compiled) == texts(plain)
    assert compiled.lanes.fixed is not None
    assert compiled.lanes.fixed.taken > 0
    drawn = {"do_sample": True, "temperature": 2.0, "seed": 3}
    assert texts(compiled, **drawn) == texts(plain, **drawn)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma", "gpt2"])
def test_on_every_decoder(
    tiny: Any, shared_pool: Any, tokenizer: Any, embedder: Any, kind: str, packed: bool
) -> None:
    model, (_, pool) = tiny.model(kind), shared_pool(kind)
    given = {"tokenizer": tokenizer, "embedder": embedder, "packed": packed}
    wanted = texts(HiLoRA.from_pretrained(model, pool, "hilora", **given))
    found = HiLoRA.from_pretrained(model, pool, "hilora", compile=SIZES, **given)
    assert texts(found) == wanted
    assert found.lanes.fixed is not None
    assert found.lanes.fixed.taken > 0


def test_graphs_are_captured_whole_and_once() -> None:
    """In a process of its own, where shapes are not checked: the checks are no tensor operations."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib -q", "-p", "no:xdist"]
    file = str(Path(__file__).parent / "captured.py")
    ran = subprocess.run([*command, file], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-6000:]


def test_rows_of_the_base_model_are_its_own_beside_any_others(build: Build) -> None:
    router = build("hilora", compile=SIZES)
    router.compile()
    fixed = router.lanes.fixed
    assert fixed is not None
    step, held = fixed._steps[8, 32], fixed.held
    routed = router.planner.route(PROMPTS)
    from hilora.engine.plans import one_plan, row_plans

    rows = row_plans(router.planner.plan(routed, range(3), 0), routed.source)
    found = []
    for plans in ([None] * 8, [None, *rows, None, *rows]):
        slots = fixed._lay_out({c: row.source for row in plans if row is not None for c in row.contents})
        step.bind(one_plan(plans, slots.of, slots.ids))
        fixed._lodge()
        for layer in held.buffers:
            for each in layer:
                each.copy_(torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each))
        found.append(step([5] * 8, [3] * 8)[[0, 4]])
    assert torch.equal(*found)


def test_what_does_not_fit_is_served_by_other_steps(build: Build) -> None:
    small = Compile(rows=(2,), tokens=(24,), slots=1, backend="eager")
    for method, options in (("ensemble", {}), ("mixture", {"k": 3}), ("selection", {})):
        plain, router = build(method, **options), build(method, compile=small, **options)
        assert texts(router) == texts(plain)
        long = ["abab " * 12, "xyz"]
        assert texts(router, long) == texts(plain, long)


def test_compiling_is_refused_where_it_cannot_be(
    build: Build, tiny: Any, shared_pool: Any, tokenizer: Any, embedder: Any
) -> None:
    with pytest.raises(ModelError, match="no adapters yet"):
        build("merged", compile=SIZES)
    with pytest.raises(InputError, match="uses none"):
        build("base", compile=SIZES)
    with pytest.raises(InputError, match="plain"):
        build("hilora", compile=SIZES, form="plain")
    with pytest.raises(InputError, match="Nothing is to be compiled"):
        build("hilora").compile()
    with pytest.raises(InputError, match="stop"):
        build("hilora", compile="stop")
    with pytest.raises(InputError, match="rows"):
        Compile(rows=())
    with pytest.raises(InputError, match="slots"):
        Compile(slots=0)
    model, (_, pool) = tiny.model("llama"), shared_pool("llama")  # its own: a budget is the model's, whoever asks
    given = {"tokenizer": tokenizer, "embedder": embedder, "kv_memory": 1000}
    with pytest.raises(InputError, match="kv_memory"):
        HiLoRA.from_pretrained(model, pool, "hilora", compile=SIZES, **given).compile()
    with pytest.raises(ModelError, match="closed"):
        build("hilora", "t5", compile=SIZES).compile()


def test_a_static_cache_is_not_compiled_under_adapters_that_come_and_go(build: Build) -> None:
    """On a GPU transformers compiles whatever has a static cache, and hooks crashed it."""
    router = build("hilora")
    config = router.model.generation_config
    wanted = texts(router)
    config.compile_config = CompileConfig(backend="aot_eager")
    config.compile_config._compile_all_devices = True  # as on a GPU
    try:
        assert texts(router, cache_implementation="static") == wanted
    finally:
        config.compile_config = None
    with pytest.raises(InputError, match="compile="):
        texts(router, compile_config=CompileConfig())


def test_rows_that_end_at_any_time_leave_the_others_as_they_are(build: Build) -> None:
    prompts = [f"{one} {other}" for one in PROMPTS for other in PROMPTS[:4]]
    given = {"max_new_tokens": 24, "eos_token_id": list(range(0, 40, 5)), "batch_size": 8, "do_sample": True}
    wanted = [answer.text for answer in build("hilora").generate(prompts, **given)]
    assert len({len(text) for text in wanted}) > 4
    router = build("hilora", compile=SIZES)
    assert [answer.text for answer in router.generate(prompts, **given)] == wanted
    assert router.lanes.fixed is not None
    assert router.lanes.fixed.held.lengths == []


def test_keys_and_values_stay_with_their_rows() -> None:
    rng, like = random.Random(0), torch.zeros(1, 2, 1, 3)
    held, rows, marks = Fixed([(like, like)], 6, 16), list[int](), iter(range(1, 1000))
    for _ in range(200):
        if rng.random() < 0.5 and len(rows) < 6:
            lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 6 - len(rows)))]
            read = Rectangle(1, (len(lengths), max(lengths)))
            read.open(len(lengths))
            new = [next(marks) for _ in lengths]
            keys = torch.tensor(new, dtype=torch.float32)[:, None, None, None].expand(-1, 2, max(lengths), 3)
            read.make_room(max(lengths))
            read.cache.layers[0].update(keys, -keys)
            read.grew(max(lengths), lengths)
            held.take(read)
            rows += new
        elif rows:
            gone = rng.sample(range(len(rows)), rng.randint(1, len(rows)))
            rows = [rows[was] for was in held.leave(gone)]
        ((keys, values),) = held.buffers
        for place, (mark, length) in enumerate(zip(rows, held.lengths, strict=True)):
            assert (keys[place, :, :length] == mark).all()
            assert (values[place, :, :length] == -mark).all()
