"""Answers on a device against those on the CPU: fp32, tiny random models, every method.

The benchmark calls this, and so does `tests/engine/test_cuda.py`; the models are those of the test suite.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpuing.room import Room
from hilora import METHODS, HiLoRA, Pool
from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.engine.compiled.options import Compile

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "abba xyz", "qrs"]
LABELS = ["alpha", "beta", "gamma", "delta", "alpha", "beta"]
FEW = [(PROMPTS[row], LABELS[row]) for row in (1, 3)]
"""Those that are asked by themselves, too."""
SAMPLED = {"do_sample": True, "temperature": 1.3, "seed": 3}
NEW = 6
OPTIONS = {"hilora-roc": {"k": 5}, "arrow": {"k": 2}, "lego": {"k": 6}}
"""Of methods whose defaults are for larger pools."""
BRIEF = ("together", "sampled together", "streamed")
"""What the benchmark asks of all architectures but the first; the test asks everything of each."""
COMPILED = ("together", "sampled together", "alone", "streamed")
"""What is asked of compiled steps."""
Answers = list[tuple[str, dict[str, int]]]


@contextmanager
def the_tests_tiny() -> Iterator[Any]:
    """The test suite's makers of tiny models and pools; meanwhile one thread computes, as the suite wants it."""
    threads = torch.get_num_threads()
    path = Path(__file__).parents[2] / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        yield module.Tiny
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Pair:
    """One base model twice, and a pool of it.

    Attributes:
        here, there: on the CPU, and on the device.
        embedder: None for the pool's own, which each router then loads.
    """

    here: Any
    there: Any
    pool: Pool
    tokenizer: Any
    embedder: Any = None

    def router(self, model: Any, method: str, **more: Any) -> HiLoRA:
        """A router over one of the models."""
        return HiLoRA.from_pretrained(
            model,
            self.pool,
            method,
            tokenizer=self.tokenizer,
            embedder=self.embedder,
            **more,
            **OPTIONS.get(method, {}),
        )


def pair_of(tiny: Any, kind: str, folder: Path, device: str) -> Pair:
    """A random model of a kind, and a pool with a trained part for every method that has one."""
    here, embedder = tiny.model(kind, torch.float32), tiny.embedder()
    there = tiny.model(kind, torch.float32).to(device)
    return Pair(here, there, tiny.pool(folder / kind, kind, here, embedder), tiny.tokenizer(), embedder)


def embedded_pair(tiny: Any, folder: Path, device: str) -> Pair:
    """The same with a BERT that each router loads where its model is."""
    here, there = tiny.model("llama", torch.float32), tiny.model("llama", torch.float32).to(device)
    embedder = Embedder(str(tiny.bert(folder / "bert")))
    pool = Pool.create(folder / "pool", describe_model("tiny", here, tiny.tokenizer()), describe_embedder(embedder))
    for task in tiny.tasks:
        adapter = tiny.adapter(folder / task, tiny.sites(here, "llama"), seed=ord(task[0]))
        pool.add(task, adapter, tiny.texts(task, 20), embedder)
    return Pair(here, there, pool, tiny.tokenizer())


def told(answers: Any) -> Answers:
    """What answers say, and of which adapters they use how much."""
    return [(answer.text, dict(answer.rocs)) for answer in answers]


def batched(router: HiLoRA, labels: bool, **options: Any) -> Answers:
    """Prompts of different lengths together."""
    more = {"labels": LABELS} if labels else {}
    return told(router.generate(PROMPTS, max_new_tokens=NEW, **more, **options))


def alone(router: HiLoRA, labels: bool, **options: Any) -> Answers:
    """A few prompts, each by itself."""
    found: Answers = []
    for prompt, label in FEW:
        more = {"labels": [label]} if labels else {}
        found += told(router.generate(prompt, max_new_tokens=NEW, **more, **options))
    return found


def streamed(router: HiLoRA, labels: bool, **options: Any) -> Answers:
    """A few prompts, piece by piece."""
    found: Answers = []
    for prompt, label in FEW:
        more = {"labels": [label]} if labels else {}
        pieces = router.stream(prompt, max_new_tokens=NEW, **more, **options)
        found.append(("".join(pieces), {}))
    return found


ASKS: dict[str, Callable[[HiLoRA, bool], Answers]] = {
    "together": batched,
    "sampled together": partial(batched, **SAMPLED),
    "alone": alone,
    "sampled alone": partial(alone, **SAMPLED),
    "streamed": streamed,
    "sampled, streamed": partial(streamed, **SAMPLED),
}


def compared(one: HiLoRA, other: HiLoRA, method: str, asks: Iterable[str]) -> tuple[int, list[str]]:
    """Answers compared, and what is wrong: every answer of the second that is not the first's."""
    count, wrong = 0, []
    for ask in asks:
        wanted, found = (ASKS[ask](router, method == "oracle") for router in (one, other))
        count += len(wanted)
        for row, (want, got) in enumerate(zip(wanted, found, strict=True)):
            if want != got:
                wrong.append(f"{method}, {ask}, prompt {row}: {got} is not {want}")
    return count, wrong


def differences(pair: Pair, methods: Iterable[str], asks: Iterable[str] = ASKS) -> tuple[int, list[str]]:
    """Answers compared of some methods, and what is wrong."""
    count, wrong = 0, list[str]()
    for method in methods:
        more, found = compared(pair.router(pair.here, method), pair.router(pair.there, method), method, asks)
        count, wrong = count + more, wrong + found
    return count, wrong


def compiled_differences(pair: Pair, method: str, backend: str = "inductor") -> tuple[int, list[str]]:
    """The same of the device's model when it is compiled."""
    options = Compile((len(PROMPTS),), (64,), len(pair.pool), backend)
    router: Any = pair.router(pair.there, method, compile=options)
    router.compile()  # here: torch 2.11's CUDA build without a driver breaks where a second thread compiles, too
    count, wrong = compared(pair.router(pair.here, method), router, method, COMPILED)
    if not router.lanes.fixed.taken:
        wrong.append(f"{method}: no step was a compiled one")
    return count, wrong


def of_kind(kind: str, room: Room) -> Iterator[dict[str, Any]]:
    """Every method on an architecture."""
    asks = ASKS if kind == room.size.kinds[0] else BRIEF
    with the_tests_tiny() as tiny:
        count, wrong = differences(pair_of(tiny, kind, room.folder / "equal", str(room.device)), METHODS, asks)
    yield {"kind": kind, "methods": len(METHODS), "answers": count, "wrong": wrong}


def of_embedder(room: Room) -> Iterator[dict[str, Any]]:
    """Routers that load the embedder where their model is."""
    methods = ("hilora", "hilora-plus", "mixture")
    with the_tests_tiny() as tiny:
        count, wrong = differences(embedded_pair(tiny, room.folder / "embedded", str(room.device)), methods)
    yield {"kind": "llama", "methods": len(methods), "answers": count, "wrong": wrong}


def of_compiled(kind: str, method: str, room: Room) -> Iterator[dict[str, Any]]:
    """Compiled on the device, against the CPU as ever."""
    with the_tests_tiny() as tiny:
        pair = pair_of(tiny, kind, room.folder / f"compiled-{method}", str(room.device))
        count, wrong = compiled_differences(pair, method, room.size.backend)
    yield {"kind": kind, "method": method, "answers": count, "wrong": wrong}


def measurements(size: Any) -> dict[str, Any]:
    """Part equality."""
    return {
        **{kind: partial(of_kind, kind) for kind in size.kinds},
        "an embedder of the pool's": of_embedder,
        **{f"compiled: {kind}, {method}": partial(of_compiled, kind, method) for kind, method in size.compiled},
    }
