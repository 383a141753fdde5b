"""Running methods over cases: mixed and shuffled batches, one JSON line per row, resumable at any point.

Batches are fixed beforehand: they depend on the seed, the data and the batch size, not on where a run was
interrupted. An answer may be as long as its task's longest reference, rounded up to a power of two; tasks of one
limit share batches, as do prompts of like length, so that few rows wait for others. The law that a row in a batch
equals the row alone makes the rest a matter of time only. What no mask can change (base, oracle) is measured once per
row and counts for every split and setting.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from hilora.errors import HiloraError
from hilora.evaluate.lines import Line, constant_answers, describe_row, read_done, result
from hilora.evaluate.metrics import METRICS
from hilora.evaluate.rows import Row
from hilora.evaluate.settings import Case
from hilora.evaluate.setup import setup
from hilora.generate import HiLoRA
from hilora.methods import Method, get_method
from hilora.planner import Planner, Routed
from hilora.pool.trained import trained_path
from hilora.pool.view import PoolView
from hilora.prompts import encode_prompts
from hilora.route.embed import Embedder, Remembering
from hilora.route.oracle import Oracle
from hilora.types import Completion

WINDOW = 8
"""Batches within which prompts are ordered by length."""
CONSTANT = "constant"
Measure = Callable[[Sequence[int]], dict[int, Line]]
"""Case numbers of a batch -> their lines."""


@dataclass(frozen=True)
class Job:
    """What one run measures.

    Attributes:
        setting: name of the setting, written with every row.
        cases: all its cases.
        methods: label -> (method name, options); the label is written with every row. "constant" is a method
            here: each task's most frequent reference.
        max_new_tokens, batch_size, seed: of generation; the first is the most for any task.
    """

    setting: str
    cases: Sequence[Case]
    methods: dict[str, tuple[str, dict[str, Any]]]
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0


@dataclass
class Bench:
    """What methods are measured with.

    Args:
        pool, model, tokenizer, embedder: as for `HiLoRA`.
        job: what to measure.
    """

    pool: PoolView
    model: Any
    tokenizer: Any
    embedder: Embedder
    job: Job
    encoded: list[list[int]] = field(init=False, repr=False)
    limits: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, options in self.job.methods.values():
            if name != CONSTANT:
                get_method(name, **options)  # refused before anything runs
        rows = [case.row for case in self.job.cases]
        for name in {name for row in rows for name in row.metrics if name in METRICS}:
            METRICS[name].row("a", "a")  # a metric whose package is missing is known now, not in an hour
        self.encoded = encode_prompts([row.inputs for row in rows], self.tokenizer)
        self.limits = answer_limits(rows, self.tokenizer, self.job.max_new_tokens)
        self.embedder = Remembering(self.embedder)

    @cached_property
    def constant(self) -> dict[str, str]:
        """Task -> its most frequent reference."""
        return constant_answers(self.job.cases)

    def batches(self) -> list[list[int]]:
        """Batches of case numbers, the same for every method."""
        job = self.job
        return list(schedule(job.cases, [len(ids) for ids in self.encoded], self.limits, job.batch_size, job.seed))

    def measure_constant(self, label: str, batch: Sequence[int]) -> dict[int, Line]:
        """Case number -> its line, where every answer is the most frequent one of its task."""
        cases, method = self.job.cases, Method(CONSTANT)
        answers = {i: Completion(self.constant[cases[i].row.task], "stop", method=CONSTANT) for i in batch}
        return {i: result(label, cases[i], answer, 0.0, method) for i, answer in answers.items()}

    def header(self, name: str, **more: Any) -> Line:
        """The setup line of a results file: what its rows were made with.

        Args:
            name: of the command.
            more: what else belongs to it; `part` and `per_task` are compared when a file is gone on with.
        """
        return setup(
            name,
            dtype=str(self.model.dtype).removeprefix("torch."),
            adapters={entry.name: entry.hash[:16] for entry in self.pool.entries},
            ridge=self.pool.ridge,
            max_new_tokens=self.job.max_new_tokens,
            batch_size=self.job.batch_size,
            seed=self.job.seed,
            parts=self.parts(),
            **more,
        )

    def parts(self) -> dict[str, str]:
        """Label -> hash of its trained part, for methods that have one."""
        found = {}
        for label, (name, options) in self.job.methods.items():
            part = None if name == CONSTANT else get_method(name, **options).part
            if part is not None and (path := trained_path(self.pool.path, part)).exists():
                found[label] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return found

    def measure(self, label: str, router: HiLoRA, routed: Routed, batch: Sequence[int]) -> dict[int, Line]:
        """Case number -> its line, for one batch.

        Raises:
            HiloraError: a row cannot be served; names the batch's rows.
        """
        cases, method = self.job.cases, router.planner.method
        began = time.perf_counter()
        try:
            found = router.answer_batch(
                routed,
                batch,
                [self.encoded[i] for i in batch],
                seed=self.job.seed,
                max_new_tokens=self.limits[cases[batch[0]].row.task],
            )
        except (HiloraError, RuntimeError) as error:
            ids = ", ".join(cases[i].row.id for i in batch)
            raise HiloraError(f"Stopped at the batch of these rows: {ids}. {error}") from error
        each = (time.perf_counter() - began) / len(batch)
        return {i: result(label, cases[i], answers[0], each, method) for i, answers in zip(batch, found, strict=True)}


def run_job(
    bench: Bench,
    out: Path,
    *,
    header: dict[str, Any],
    on_rows: Callable[[str, int], None] | None = None,
) -> None:
    """Measure every method on every case that `out` does not hold yet.

    Args:
        bench: what to measure, and with what.
        out: JSON Lines; rows are appended batch by batch.
        header: setup to write before new rows.
        on_rows: called with (label, rows done of this label).

    Raises:
        HiloraError: a row cannot be served; names it, and what was written stays.
    """
    job, batches = bench.job, bench.batches()
    done, items, earlier = read_done(out, header)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(header) + "\n")
        for row in {case.row.id: case.row for case in job.cases}.values():
            if row.id not in items:
                lines.write(json.dumps(describe_row(row)) + "\n")
        for label, (name, options) in job.methods.items():
            keys = [(label, job.setting, case.split, case.row.id) for case in job.cases]
            left = [batch for batch in batches if any(keys[i] not in done for i in batch)]
            finished = sum(key in done for key in keys)
            if not left:
                continue
            measure, is_masked, seconds = _measurer(bench, label, name, options)
            lines.write(json.dumps({"routing": label, "setting": job.setting, "seconds": round(seconds, 2)}) + "\n")
            for batch in left:
                known = {i: (label, job.cases[i].row.id) for i in batch}
                if not is_masked and earlier.keys() >= set(known.values()):
                    found = {i: earlier[key] for i, key in known.items()}
                else:
                    found = measure(batch)
                for i in batch:
                    if keys[i] not in done:
                        case = job.cases[i]
                        line = found[i] | {"setting": job.setting, "split": case.split, "seen": case.seen}
                        earlier[known[i]] = line
                        lines.write(json.dumps(line, separators=(",", ":")) + "\n")
                        finished += 1
                lines.flush()
                if on_rows:
                    on_rows(label, finished)


def _measurer(bench: Bench, label: str, name: str, options: dict[str, Any]) -> tuple[Measure, bool, float]:
    """What measures a batch by a method, whether masks can change its answers, the seconds that routing took."""
    if name == CONSTANT:
        return partial(bench.measure_constant, label), False, 0.0
    planner = Planner(bench.pool, get_method(name, **options), bench.embedder)
    router = HiLoRA(bench.model, bench.tokenizer, planner)
    routed, seconds = route_cases(planner, bench.job.cases)
    is_masked = not isinstance(planner.method.router, Oracle | None)
    return partial(bench.measure, label, router, routed), is_masked, seconds


def route_cases(planner: Planner, cases: Sequence[Case]) -> tuple[Routed, float]:
    """Route all cases at once, and the seconds it took (embedding counts where texts are new).

    The oracle is the papers' reference column: its adapter is never masked.
    """
    is_oracle = isinstance(planner.method.router, Oracle)
    began = time.perf_counter()
    routed = planner.route(
        [case.row.inputs for case in cases],
        labels=[case.row.task for case in cases] if is_oracle else None,
        deny=None if is_oracle else [case.deny for case in cases],
        apart=True,
    )
    return routed, time.perf_counter() - began


def answer_limits(rows: Sequence[Row], tokenizer: Any, most: int) -> dict[str, int]:
    """Task -> the most tokens of an answer: its longest reference and the end token, up to a power of two."""
    longest: dict[str, int] = {}
    for row, ids in zip(rows, tokenizer([row.targets for row in rows])["input_ids"], strict=True):
        longest[row.task] = max(longest.get(row.task, 0), len(ids) + 1)
    return {task: min(most, max(8, 2 ** (length - 1).bit_length())) for task, length in longest.items()}


def schedule(
    cases: Sequence[Case], lengths: Sequence[int], limits: Mapping[str, int], batch_size: int, seed: int
) -> Iterator[list[int]]:
    """Batches of case numbers: shuffled, one limit in a batch, prompts by length within a few batches."""
    shuffled = np.random.default_rng(seed).permutation(len(cases)).tolist()
    for limit in sorted(set(limits.values())):
        order = [i for i in shuffled if limits[cases[i].row.task] == limit]
        for start in range(0, len(order), WINDOW * batch_size):
            window = sorted(order[start : start + WINDOW * batch_size], key=lambda i: lengths[i])
            for at in range(0, len(window), batch_size):
                yield window[at : at + batch_size]
