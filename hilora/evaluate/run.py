"""Running methods over cases: mixed and shuffled batches, one JSON line per row, resumable at any point.

Cases that are served alike (`served`) have one answer: it is generated for the first of them and counts for all, also
for those of other results files. Batches are fixed beforehand (`batches`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from hilora.base.outputs import alone
from hilora.engine.generate import HiLoRA
from hilora.errors import HiloraError
from hilora.evaluate.job import CONSTANT, Bench
from hilora.evaluate.lines import (
    Key,
    Line,
    answer_part,
    describe_answer,
    describe_route,
    describe_row,
    read_answers,
    read_done,
)
from hilora.evaluate.served import served_digests
from hilora.evaluate.settings import Case
from hilora.methods.lookup import get_method
from hilora.methods.method import Method
from hilora.planner import Planner, Routed
from hilora.route.apart import Apart
from hilora.route.oracle import Oracle
from hilora.types import Completion


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
        InputError: another run is writing `out`, or it cannot be gone on with.
        HiloraError: a row cannot be served; names it, and what was written stays.
    """
    job, elsewhere = bench.job, read_answers(also)
    with _held(out, header) as (done, items, lines):
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


@contextmanager
def _held(out: Path, header: Line) -> Iterator[tuple[dict[Key, Line], set[str], TextIO]]:
    """What a results file holds (`read_done`), and the file to append to; no other run has it meanwhile."""
    with alone(out):
        done, items = read_done(out, header)
        with out.open("a", encoding="utf-8") as lines:
            yield done, items, lines


def _measure_constant(
    bench: Bench, label: str, name: str, options: Mapping[str, Any], held: Mapping[int, Line]
) -> Iterator[dict[int, Line]]:
    """Case number -> its line, where every answer is its task's constant one."""
    cases, route = bench.job.cases, describe_route((), Method(CONSTANT))
    answers = {task: Completion(text, "stop", method=CONSTANT) for task, text in bench.job.constant.items()}
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
                digests[i]: line
                for i, line in _answer(bench, router, routed, batch).items()
                if digests[i] not in known
            }
            known.update(new)
            found = lines(new)
            for i, line in found.items():
                if i not in batch:
                    line["shared"] = True
            yield found


def _answer(bench: Bench, router: HiLoRA, routed: Routed, batch: Sequence[int]) -> dict[int, Line]:
    """Case number -> what its line says of its answer, for one batch.

    Raises:
        HiloraError: a row cannot be served; names the batch's rows.
    """
    cases = bench.job.cases
    began = time.perf_counter()
    try:
        found = router.answer_batch(
            routed,
            batch,
            [bench.encoded[i] for i in batch],
            seed=bench.job.seed,
            max_new_tokens=bench.limits[cases[batch[0]].row.task],
        )
    except (HiloraError, RuntimeError) as error:
        ids = ", ".join(cases[i].row.id for i in batch)
        raise HiloraError(f"Stopped at the batch of these rows: {ids}. {error}") from error
    each = (time.perf_counter() - began) / len(batch)
    return {i: describe_answer(cases[i].row, answers[0], each) for i, answers in zip(batch, found, strict=True)}


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
