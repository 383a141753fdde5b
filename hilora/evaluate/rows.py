"""The rows that methods are measured on, read from a user's data, mixed and shuffled.

Data are JSON Lines with "inputs" and "targets" (or another shape of `base.records`), and if known "task", "cluster",
"metric": one file per task in a folder (the file's name is the task where a line does not say), or one file with all
tasks. Committed results name rows by id, task and line number, and hold hashes, never texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilora.base.prompts import check_whole
from hilora.base.records import pair_of
from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.metrics import normalise
from hilora.evaluate.statistics import task_seed
from hilora.evaluate.tasks import metrics_for
from hilora.jsonl import numbered_lines, plain_path

PARTS = ("all", "first", "second")


@dataclass(frozen=True)
class Row:
    """One prompt with its reference answer.

    Attributes:
        id: "<task>/<line number from 0>".
        task: also the name of the adapter that was trained on it, if there is one.
        cluster: the group of like tasks that it belongs to.
        inputs, targets: the texts.
        metrics: names of the task's metrics.
    """

    id: str
    task: str
    cluster: str
    inputs: str
    targets: str
    metrics: tuple[str, ...]


def short_hash(text: str) -> str:
    """12 hexadecimal digits of a text's sha256."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def answer_hash(text: str) -> str:
    """Hash of a text as exact match sees it."""
    return short_hash(normalise(text))


def load_rows(data: Path) -> list[Row]:
    """All rows of a folder or a file.

    Args:
        data: a folder of JSON Lines files, or one such file.

    Raises:
        InputError: nothing to read, or a line without inputs or targets (names it).
    """
    if not data.exists():
        raise InputError(f"There is no {data}. Give a folder of JSON Lines files, or one file.")
    files = sorted(data.glob("*.jsonl")) if data.is_dir() else [data]
    rows = [row for file in files for row in _read_file(file)]
    if not rows:
        raise InputError(f"{data} holds no rows. Expected JSON Lines files with inputs and targets.")
    return rows


def choose_rows(
    rows: Sequence[Row],
    *,
    part: str = "all",
    per_task: int | None = None,
    tasks: Collection[str] | None = None,
    clusters: Collection[str] | None = None,
    seed: int = 0,
) -> list[Row]:
    """Rows to measure on, task by task in the order of their names.

    Args:
        rows: all rows, from `load_rows`.
        part: "first" or "second" half of each task's lines (one to choose on, one to report), or "all".
        per_task: at most so many of each task, drawn by the seed.
        tasks, clusters: keep to these.
        seed: of the draw.

    Raises:
        InputError: per_task is no number of rows, or none is left.
        UnknownNameError: a task or cluster that the data do not have.
    """
    if per_task is not None and per_task < 1:
        raise InputError(f"per_task is a number of rows: got {per_task}, expected at least 1.")
    if part not in PARTS:
        raise UnknownNameError("part", part, PARTS)
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    _check("task", tasks, by_task)
    _check("cluster", clusters, {row.cluster for row in rows})
    chosen: list[Row] = []
    for task in sorted(by_task):
        own = by_task[task]
        if (tasks is not None and task not in tasks) or (clusters is not None and own[0].cluster not in clusters):
            continue
        half = len(own) // 2
        own = {"all": own, "first": own[:half], "second": own[half:]}[part]
        if per_task is not None and len(own) > per_task:
            drawn = np.random.default_rng(task_seed(seed, task)).permutation(len(own))[:per_task]
            own = [own[i] for i in sorted(drawn)]
        chosen += own
    if not chosen:
        raise InputError(f"No row is left: part {part!r} of the tasks and clusters that were named is empty.")
    return chosen


def cluster_of(rows: Sequence[Row]) -> dict[str, str]:
    """Task -> cluster."""
    return {row.task: row.cluster for row in rows}


def _check(what: str, names: Collection[str] | None, known: Collection[str]) -> None:
    for name in names or ():
        if name not in known:
            raise UnknownNameError(what, name, sorted(known))


def _texts(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and the reference of a line; numbers are texts here."""
    if fields.get("inputs") is not None:
        return str(fields["inputs"]), str(fields["targets"])
    asked, answer = pair_of(fields)
    if not isinstance(asked, str):
        raise InputError("a row is one prompt of one text, not a longer chat")
    return asked, answer


def _read_file(file: Path) -> list[Row]:
    rows: list[Row] = []
    lines_of: dict[str, int] = {}
    for number, line in numbered_lines(file):
        try:
            fields: Mapping[str, Any] = json.loads(line)
            task = str(fields.get("task") or plain_path(file).stem)
            place = lines_of.get(task, 0)
            inputs, targets = _texts(fields)
            row = Row(
                id=f"{task}/{place}",
                task=task,
                cluster=str(fields.get("cluster") or "all"),
                inputs=inputs,
                targets=targets,
                metrics=metrics_for(task, fields.get("metric")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            why = f" ({error})" if isinstance(error, InputError) else ""
            raise InputError(f"{file}, line {number}: expected inputs and targets, got {line:.60}{why}") from error
        for text in (inputs, targets):
            check_whole(text, f"{file}, line {number}")
        lines_of[task] = place + 1
        rows.append(row)
    return rows
