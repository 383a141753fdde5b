"""One bench from loading to result."""

from __future__ import annotations

import importlib.util
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hilora.base.prompts import encode_prompts
from hilora.bench.contenders import CONTENDERS, check_twins, contenders
from hilora.bench.rounds import ratios, report, rounded, stopwatch, time_rounds
from hilora.bench.stage import Contender, Stage
from hilora.bench.workload import Workload, make_workload
from hilora.engine.generate import HiLoRA
from hilora.errors import UnknownNameError
from hilora.evaluate.setup import setup
from hilora.methods import DEFAULT_METHOD
from hilora.methods.lookup import get_method
from hilora.pool.pool import Pool
from hilora.pool.source import find_pool
from hilora.pool.view import PoolView


@dataclass(frozen=True)
class Settings:
    """What is timed, see `hilora bench --help`."""

    batch: int = 32
    adapters: int = 8
    share: str = "zipf"
    words: int = 60
    new_tokens: int = 32
    arrow_adapters: int = 48
    rounds: int = 5
    contenders: Sequence[str] | None = None
    method: tuple[str, dict[str, Any]] = (DEFAULT_METHOD, {})
    seed: int = 0
    prompts: Sequence[str] | None = None

    def wanted(self) -> list[str]:
        """The contenders; by default all, PEFT's if it is installed.

        Raises:
            UnknownNameError: there is no such contender.
        """
        if self.contenders is None:
            has_peft = importlib.util.find_spec("peft") is not None
            return [name for name in CONTENDERS if has_peft or not name.startswith("peft")]
        for name in self.contenders:
            if name not in CONTENDERS:
                raise UnknownNameError("contender", name, CONTENDERS)
        return list(dict.fromkeys(self.contenders))


@dataclass
class Bench:
    """Contenders that are loaded and checked.

    Attributes:
        built: the contenders.
        settings: what is timed.
        tokens: "prompt" and "new", of the whole batch.
        header: how the numbers came about.
        device: of the model.
        embed: embeds the batch's prompts, as hilora does in each of its turns.
    """

    built: Sequence[Contender]
    settings: Settings
    tokens: dict[str, int]
    header: dict[str, Any]
    device: torch.device
    embed: Callable[[], object]
    table: list[tuple[str, ...]] = field(default_factory=list, init=False)

    @property
    def turns(self) -> int:
        """Calls of `on_turn` to come."""
        return len(self.built) * (self.settings.rounds + 1)

    def run(self, on_turn: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Time everything. Returns one JSON object; ratios of throughput are medians over the rounds."""
        times = time_rounds(
            self.built,
            rounds=self.settings.rounds,
            new_tokens=self.settings.new_tokens,
            device=self.device,
            on_turn=on_turn,
        )
        embedding = statistics.median(stopwatch(self.device)(self.embed) for _ in range(self.settings.rounds + 1))
        self.table = report(times, self.tokens)
        parts = ratios(times)
        return (
            self.header
            | parts["whole"]
            | {
                "prefill": parts["prefill"],
                "decode": parts["decode"],
                "tokens": self.tokens,
                "embedding_s": round(embedding, 4),
                "seconds": rounded(times),
            }
        )


@contextmanager
def prepared(pool: str | None, base: str | None, dtype: str | None, settings: Settings) -> Iterator[Bench]:
    """Load pool, base and contenders, and compare those that compute the same.

    Raises:
        HiloraError: what is wrong, before anything is timed.
    """
    wanted, opened = settings.wanted(), Pool.open(find_pool(pool))
    get_method(settings.method[0], **settings.method[1])  # refused before anything is loaded
    names = alike(opened)
    work = make_workload(
        names,
        batch=settings.batch,
        adapters=settings.adapters,
        share=settings.share,
        words=settings.words,
        new_tokens=settings.new_tokens,
        seed=settings.seed,
        prompts=settings.prompts,
    )
    router = HiLoRA.from_pretrained(base, opened, "base", dtype=dtype)
    stage = Stage(
        router.model,
        router.tokenizer,
        router.planner.embedder,
        opened,
        lambda: HiLoRA.from_pretrained(base, opened, "base", dtype=dtype).model,
        [*work.distinct, *(name for name in names if name not in work.distinct)][: settings.arrow_adapters],
        work,
        settings.method,
    )
    with contenders(stage, wanted) as built:
        gaps, free = check_twins(built), routed_freely(stage) if "hilora" in wanted else {}
        yield Bench(
            built,
            settings,
            count_tokens(router, work),
            describe(stage, settings, gaps) | free,
            router.model.device,
            lambda: stage.embedder(work.prompts),
        )


def alike(pool: PoolView) -> list[str]:
    """The enabled adapters of the commonest rank, in the order of their names: PEFT's Arrow needs one rank."""
    entries = [entry for entry in pool.entries if entry.enabled]
    if not entries:
        return []
    (rank, _), *_ = Counter(entry.rank for entry in entries).most_common(1)
    return sorted(entry.name for entry in entries if entry.rank == rank)


def count_tokens(router: HiLoRA, work: Workload) -> dict[str, int]:
    """Of the whole batch; the first new token belongs to the prefill."""
    prompt = sum(map(len, encode_prompts(list(work.prompts), router.tokenizer)))
    return {"prompt": prompt, "new": (work.new_tokens - 1) * len(work.prompts)}


def routed_freely(stage: Stage) -> dict[str, Any]:
    """What `hilora` uses of the pool for this batch: adapters and ROCs of a prompt, adapters of all prompts."""
    chosen = stage.planner.explain(stage.planner.route(list(stage.work.prompts)))
    return {
        "free": {
            "distinct": len({choice.name for row in chosen for choice in row}),
            "adapters": round(statistics.mean(map(len, chosen)), 2),
            "rocs": round(statistics.mean(sum(choice.rocs for choice in row) for row in chosen), 2),
        }
    }


def describe(stage: Stage, settings: Settings, gaps: dict[str, float]) -> dict[str, Any]:
    """The setup of the numbers."""
    versions = {}
    if importlib.util.find_spec("peft") is not None:
        import peft

        versions["peft"] = peft.__version__
    return setup(
        "hilora bench",
        **versions,
        dtype=str(stage.model.dtype).removeprefix("torch."),
        **asdict(settings) | {"prompts": "given" if settings.prompts else "random words"},
        pool_adapters=len(stage.pool),
        arrow_over=len(stage.names),
        distinct=len(stage.work.distinct),
        rank=stage.pool.entries[stage.pool.index(stage.names[0])].rank,
        twins={pair: round(gap, 6) for pair, gap in gaps.items()},
    )
