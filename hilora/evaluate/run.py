"""Running methods over cases: mixed and shuffled batches, one JSON line per row, resumable at any point.

Cases that are served alike (`served`) have one answer: it is generated for the first of them and counts for all, also
for those of other results files. Batches are fixed beforehand: they depend on the seed, the data, the batch size and
what other methods and files have answered, not on where a run was interrupted. An answer may be as long as its task's
longest reference, rounded up to a power of two; tasks of one limit share batches, as do prompts of like length, so
that few rows wait for others. The law that a row in a batch equals the row alone, up to rounding, makes the rest a
matter of time only.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hilora.base.embed import Embedder, Remembering
from hilora.base.prompts import encode_prompts
from hilora.engine.generate import HiLoRA
from hilora.errors import HiloraError
from hilora.evaluate.lines import (
    Line,
    answer_part,
    constant_answers,
    describe_answer,
    describe_route,
    describe_row,
    read_answers,
    read_done,
)
from hilora.evaluate.metrics import METRICS
from hilora.evaluate.rows import Row
from hilora.evaluate.served import served_digests
from hilora.evaluate.settings import Case
from hilora.evaluate.setup import setup
from hilora.methods.lookup import get_method
from hilora.methods.method import Method
from hilora.planner import Planner, Routed
from hilora.pool.trained import trained_path
from hilora.pool.view import PoolView
from hilora.route.apart import Apart
from hilora.route.oracle import Oracle
from hilora.types import Completion

WINDOW = 8
"""Batches within which prompts are ordered by length."""
CONSTANT = "constant"
WORLD = ("base", "adapters", "ridge", "dtype", "seed")
"""What of the setup decides answers."""
ANSWERS = 1
"""To be raised when methods or metrics change what is answered or scored: no older answers are taken then."""


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

    def batches(self, numbers: Sequence[int]) -> list[list[int]]:
        """Batches of the numbers of cases that are to be answered, the same whenever they are asked for."""
        job = self.job
        lengths = [len(ids) for ids in self.encoded]
        return list(schedule(job.cases, lengths, self.limits, job.batch_size, job.seed, numbers))

    def header(self, name: str, **more: Any) -> Line:
        """The setup line of a results file: what its rows were made with.

        Args:
            name: of the command.
            more: what else belongs to it; `part` and `per_task` are compared when a file is gone on with.
        """
        return setup(
            name,
            base=self.pool.base.name,
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

    def answer(self, router: HiLoRA, routed: Routed, batch: Sequence[int]) -> dict[int, Line]:
        """Case number -> what its line says of its answer, for one batch.

        Raises:
            HiloraError: a row cannot be served; names the batch's rows.
        """
        cases = self.job.cases
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
        return {i: describe_answer(cases[i].row, answers[0], each) for i, answers in zip(batch, found, strict=True)}

    def world(self, label: str) -> str:
        """All that a method's answers depend on beside routes and rows, as a text."""
        header = self.header("")
        return repr([ANSWERS, *(header[key] for key in WORLD), header["parts"].get(label)])


def run_job(
    bench: Bench,
    out: Path,
    *,
    header: dict[str, Any],
    also: Sequence[Path] = (),
    on_rows: Callable[[str, int], None] | None = None,
) -> None:
    """Measure every method on every case that `out` does not hold yet.

    Args:
        bench: what to measure, and with what.
        out: JSON Lines; rows are appended batch by batch.
        header: setup to write before new rows.
        also: other results files: answers to rows that were served alike are taken from them.
        on_rows: called with (label, rows done of this label).

    Raises:
        HiloraError: a row cannot be served; names it, and what was written stays.
    """
    job, elsewhere = bench.job, read_answers(also)
    done, items = read_done(out, header)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(header) + "\n")
        for row in {case.row.id: case.row for case in job.cases}.values():
            if row.id not in items:
                lines.write(json.dumps(describe_row(row)) + "\n")
        for label, (name, options) in job.methods.items():
            keys = [(label, job.setting, case.split, case.row.id) for case in job.cases]
            held = {i: done[key] for i, key in enumerate(keys) if key in done}
            if len(held) == len(keys):
                continue
            others = [line for key, line in done.items() if key[:2] != (label, job.setting)]
            known = elsewhere | {line["served"]: answer_part(line) for line in others if "served" in line}
            measure = _measure_constant if name == CONSTANT else partial(_measure, known=known)
            finished = len(held)
            for found in measure(bench, label, name, options, held):
                for i, measured in found.items():
                    case = job.cases[i]
                    where = {"setting": job.setting, "split": case.split, "seen": case.seen}
                    done[keys[i]] = line = {"method": label, "id": case.row.id} | measured | where
                    lines.write(json.dumps(line, separators=(",", ":")) + "\n")
                lines.flush()
                finished += len(found)
                if on_rows:
                    on_rows(label, finished)


def _measure_constant(
    bench: Bench, label: str, name: str, options: Mapping[str, Any], held: Mapping[int, Line]
) -> Iterator[dict[int, Line]]:
    """Case number -> its line, where every answer is the most frequent one of its task."""
    cases, route = bench.job.cases, describe_route((), Method(CONSTANT))
    texts = constant_answers(cases)
    answers = {task: Completion(text, "stop", method=CONSTANT) for task, text in texts.items()}
    missing = [i for i in range(len(cases)) if i not in held]
    yield {i: describe_answer(cases[i].row, answers[cases[i].row.task], 0.0) | route for i in missing}


def _measure(
    bench: Bench,
    label: str,
    name: str,
    options: Mapping[str, Any],
    held: Mapping[int, Line],
    known: dict[str, Line],
) -> Iterator[dict[int, Line]]:
    """Case number -> its line, a batch at a time, of the cases that are not held yet.

    Args:
        bench: what to measure with.
        label, name, options: of the method.
        held: lines that the results file holds.
        known: digest of what a row is served with -> what is known of its answer; more are put in.
    """
    job = bench.job
    planner = Planner(bench.pool, get_method(name, **options), bench.embedder)
    router = HiLoRA(bench.model, bench.tokenizer, planner)
    routed, _ = route_cases(planner, job.cases)
    choices = planner.explain(routed, job.seed)
    rows = [case.row for case in job.cases]
    digests = served_digests(planner, routed, rows, bench.limits, job.seed, bench.world(label))
    alike: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        alike.setdefault(digest, []).append(i)

    def lines(found: Iterable[str]) -> dict[int, Line]:
        return {
            i: known[digest] | {"served": digest} | describe_route(choices[i], planner.method)
            for digest in found
            for i in alike[digest]
            if i not in held
        }

    batches = bench.batches([members[0] for digest, members in alike.items() if digest not in known])
    for i, line in held.items():
        known.setdefault(digests[i], answer_part(line))
    if taken := lines(digest for digest in alike if digest in known):
        yield taken
    for batch in batches:
        if any(digests[i] not in known for i in batch):
            new = {
                digests[i]: line for i, line in bench.answer(router, routed, batch).items() if digests[i] not in known
            }
            known.update(new)
            found = lines(new)
            for i, line in found.items():
                if i not in batch:
                    line["shared"] = True
            yield found


def route_cases(planner: Planner, cases: Sequence[Case]) -> tuple[Routed, float]:
    """Route all cases at once, and the seconds it took (embedding counts where texts are new).

    Adapters that are masked are not in the pool (`route.apart`). The oracle is the papers' reference column: its
    adapter is never masked.
    """
    router = planner.method.router
    is_oracle = isinstance(router, Oracle)
    if router is not None and router.needs_embedding:
        planner = copy(planner)
        planner.method = replace(planner.method, router=Apart(router, planner.pool))
    began = time.perf_counter()
    routed = planner.route(
        [case.row.inputs for case in cases],
        labels=[case.row.task for case in cases] if is_oracle else None,
        deny=None if is_oracle else [case.deny for case in cases],
    )
    return routed, time.perf_counter() - began


def answer_limits(rows: Sequence[Row], tokenizer: Any, most: int) -> dict[str, int]:
    """Task -> the most tokens of an answer: its longest reference and the end token, up to a power of two."""
    longest: dict[str, int] = {}
    for row, ids in zip(rows, tokenizer([row.targets for row in rows])["input_ids"], strict=True):
        longest[row.task] = max(longest.get(row.task, 0), len(ids) + 1)
    return {task: min(most, max(8, 2 ** (length - 1).bit_length())) for task, length in longest.items()}


def schedule(
    cases: Sequence[Case],
    lengths: Sequence[int],
    limits: Mapping[str, int],
    batch_size: int,
    seed: int,
    numbers: Sequence[int],
) -> Iterator[list[int]]:
    """Batches of these case numbers: shuffled, one limit in a batch, prompts by length within a few batches."""
    shuffled = np.random.default_rng(seed).permutation(numbers).tolist()
    for limit in sorted(set(limits.values())):
        order = [i for i in shuffled if limits[cases[i].row.task] == limit]
        for start in range(0, len(order), WINDOW * batch_size):
            window = sorted(order[start : start + WINDOW * batch_size], key=lambda i: lengths[i])
            for at in range(0, len(window), batch_size):
                yield window[at : at + batch_size]
