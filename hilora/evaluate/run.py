"""Running methods over cases: mixed and shuffled batches, one JSON line per row, resumable at any point.

Batches are fixed beforehand: they depend on the seed, the data and the batch size, not on where a run was
interrupted. An answer may be as long as its task's longest reference, rounded up to a power of two; tasks of one
limit share batches, as do prompts of like length, so that few rows wait for others. The law that a row in a batch
equals the row alone makes the rest a matter of time only. What no mask can change (base, oracle) is measured once per
row and counts for every split and setting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hilora.errors import HiloraError, InputError
from hilora.evaluate.metrics import METRICS
from hilora.evaluate.rows import Row, answer_hash, short_hash
from hilora.evaluate.settings import Case
from hilora.generate import HiLoRA
from hilora.methods import Method, get_method
from hilora.planner import Planner, Routed
from hilora.pool.view import PoolView
from hilora.prompts import encode_prompts
from hilora.route.embed import Embedder
from hilora.route.oracle import Oracle
from hilora.types import Completion

Line = dict[str, Any]
"""A row of results as JSON."""
SAME = ("adapters", "ridge", "dtype", "max_new_tokens", "seed", "part", "per_task")
"""What must be the same for all rows of a file."""
WINDOW = 8
"""Batches within which prompts are ordered by length."""
ROUTE_SHOWN = 5
"""Adapters of a row's route that are written down."""


@dataclass(frozen=True)
class Job:
    """What one run measures.

    Attributes:
        setting: name of the setting, written with every row.
        cases: all its cases.
        methods: label -> (method name, options); the label is written with every row.
        max_new_tokens, batch_size, seed: of generation; the first is the most for any task.
    """

    setting: str
    cases: Sequence[Case]
    methods: dict[str, tuple[str, dict[str, Any]]]
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0


class Remembering(Embedder):
    """An embedder that embeds each text once."""

    def __init__(self, inner: Embedder) -> None:
        self.inner, self.vectors = inner, dict[str, Tensor]()
        self.name, self.instruction = inner.name, inner.instruction
        self.dim, self.fingerprint = inner.dim, inner.fingerprint

    def __call__(self, texts: Sequence[str], batch_size: int = 32) -> Float[Tensor, "text dim"]:
        """Embed those texts that are new."""
        new = list(dict.fromkeys(text for text in texts if text not in self.vectors))
        if new:
            self.vectors.update(zip(new, self.inner(new, batch_size), strict=True))
        return torch.stack([self.vectors[text] for text in texts])


def run_job(
    job: Job,
    pool: PoolView,
    model: Any,
    tokenizer: Any,
    embedder: Embedder,
    out: Path,
    *,
    header: dict[str, Any],
    on_rows: Callable[[str, int], None] | None = None,
) -> None:
    """Measure every method on every case that `out` does not hold yet.

    Args:
        job: what to measure.
        pool, model, tokenizer, embedder: as for `HiLoRA`.
        out: JSON Lines; rows are appended batch by batch.
        header: setup to write before new rows.
        on_rows: called with (label, rows done of this label).

    Raises:
        HiloraError: a row cannot be served; names it, and what was written stays.
    """
    for name, options in job.methods.values():
        get_method(name, **options)  # refused before anything runs
    done, items, unmasked = read_done(out, header)
    out.parent.mkdir(parents=True, exist_ok=True)
    remembering = Remembering(embedder)
    encoded = encode_prompts([case.row.inputs for case in job.cases], tokenizer)
    limits = answer_limits([case.row for case in job.cases], tokenizer, job.max_new_tokens)
    batches = list(schedule(job.cases, [len(ids) for ids in encoded], limits, job.batch_size, job.seed))
    with out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(header) + "\n")
        for row in {case.row.id: case.row for case in job.cases}.values():
            if row.id not in items:
                lines.write(json.dumps(describe_row(row)) + "\n")
        for label, (name, options) in job.methods.items():
            keys = [(label, job.setting, case.split, case.row.id) for case in job.cases]
            todo = [batch for batch in batches if any(keys[i] not in done for i in batch)]
            finished = sum(key in done for key in keys)
            if not todo:
                continue
            router = HiLoRA(model, tokenizer, Planner(pool, get_method(name, **options), remembering))
            is_masked = not isinstance(router.planner.method.router, Oracle | None)
            routed, seconds = route_cases(router.planner, job.cases)
            lines.write(json.dumps({"routing": label, "setting": job.setting, "seconds": round(seconds, 2)}) + "\n")
            for batch in todo:
                known = {} if is_masked else {i: unmasked.get((label, job.cases[i].row.id)) for i in batch}
                if not known or None in known.values():
                    limit = limits[job.cases[batch[0]].row.task]
                    known = _measure(router, routed, batch, [encoded[i] for i in batch], job, label, limit)
                for i in batch:
                    if keys[i] in done:
                        continue
                    case, line = job.cases[i], known[i]
                    assert line is not None
                    line |= {"setting": job.setting, "split": case.split, "seen": case.seen}
                    unmasked[label, case.row.id] = dict(line)
                    lines.write(json.dumps(line) + "\n")
                    finished += 1
                lines.flush()
                if on_rows:
                    on_rows(label, finished)


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


def describe_row(row: Row) -> dict[str, Any]:
    """What a table needs of a row, without its texts."""
    return {
        "item": row.id,
        "task": row.task,
        "cluster": row.cluster,
        "prompt": short_hash(row.inputs),
        "reference": answer_hash(row.targets),
        "metrics": row.metrics,
    }


def result(label: str, case: Case, answer: Completion, seconds: float, method: Method) -> Line:
    """One row's line, setting and split apart: scores as sums of statistics, hashes, route."""
    scored = [name for name in case.row.metrics if name in METRICS]
    stats = {name: METRICS[name].row(answer.text, case.row.targets) for name in scored}
    best = answer.choices[:ROUTE_SHOWN]
    rocs = sorted((choice.rocs for choice in answer.choices), reverse=True)[: method.sparse]  # of one token
    return {
        "method": label,
        "id": case.row.id,
        "stats": {name: [round(value, 4) for value in values] for name, values in stats.items()},
        "answer": answer_hash(answer.text),
        "tokens": [answer.prompt_tokens, answer.completion_tokens],
        "finish": answer.finish_reason,
        "seconds": round(seconds, 4),
        "adapters": len(rocs),
        "rocs": min(sum(rocs), method.active or sum(rocs)),
        "route": [[c.name, round(c.score, 3), round(c.weight, 3), c.rocs] for c in best],
    }


def read_done(
    out: Path, header: Line
) -> tuple[set[tuple[str, str, str, str]], set[str], dict[tuple[str, str], Line]]:
    """What a file holds: keys (method, setting, split, id) of its rows, ids of its items, a row per (method, id).

    A line that was cut off in the middle of writing is taken out of the file.

    Raises:
        InputError: the file is something else, or was made with other adapters, models or generation settings.
    """
    if not out.exists():
        return set(), set(), {}
    text = out.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        out.write_text(text, encoding="utf-8")
    try:
        rows = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise InputError(f"{out} is no JSON Lines file of results. Give another --json, or move it away.") from error
    for old in (r for r in rows if "setup" in r):
        if changed := [key for key in SAME if old.get(key) != header.get(key)]:
            raise InputError(
                f"{out} was made with another {', '.join(changed)}: such rows cannot stand in one table. "
                f"Give another --json, or move the file away."
            )
    measured = [r for r in rows if "method" in r]
    done = {(r["method"], r["setting"], r["split"], r["id"]) for r in measured}
    return done, {r["item"] for r in rows if "item" in r}, {(r["method"], r["id"]): r for r in measured}


def _measure(
    router: HiLoRA,
    routed: Routed,
    batch: Sequence[int],
    encoded: Sequence[list[int]],
    job: Job,
    label: str,
    limit: int,
) -> dict[int, Line | None]:
    """Case number -> its line, for one batch."""
    began = time.perf_counter()
    try:
        found = router.answer_batch(routed, batch, encoded, seed=job.seed, max_new_tokens=limit)
    except (HiloraError, RuntimeError) as error:
        ids = ", ".join(job.cases[i].row.id for i in batch)
        raise HiloraError(f"Stopped at the batch of these rows: {ids}. {error}") from error
    each = (time.perf_counter() - began) / len(batch)
    method = router.planner.method
    return {i: result(label, job.cases[i], answers[0], each, method) for i, answers in zip(batch, found, strict=True)}
