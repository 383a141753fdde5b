"""Rows of results -> tables: per task, per cluster, per method, with intervals and paired differences.

A task's score is the mean of its metrics, a cluster's the mean of its tasks, and the average is over tasks. All is
worked out from results files alone (`hilora.evaluate.run`), in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hilora.errors import InputError
from hilora.evaluate.metrics import METRICS, label_metric
from hilora.evaluate.statistics import (
    Difference,
    Drawn,
    Interval,
    Scored,
    bootstrap,
    by_prompt,
    difference,
    draw,
    mean_of,
)
from hilora.jsonl import read_lines

RESAMPLES = 2000
FIRST = ("base", "constant", "oracle")


@dataclass(frozen=True)
class Summary:
    """One method under one setting.

    Attributes:
        method: its label.
        average: mean over tasks, and its 95 % interval.
        tasks: task -> score.
        clusters: cluster -> mean score of its tasks.
        difference: to the reference method, on the same rows; None for that method itself.
        of_oracle: average as a share of the oracle's.
        gap: (average - base) / (oracle - base).
        harm: of the rows that base has right by exact match, the share that this method has wrong.
        adapters, rocs: used by a token, mean over rows.
        tokens_per_s: generated tokens (routing apart) by wall clock.
        drawn: task -> its score, in [0, 1], with its resamples; those of all methods of a setting are the same.
        num_rows: rows measured.
        num_prompts: different prompts among them: what the intervals stand on.
    """

    method: str
    average: Interval
    tasks: dict[str, float]
    clusters: dict[str, float]
    difference: Difference | None
    of_oracle: float | None
    gap: float | None
    harm: float | None
    adapters: float
    rocs: float
    tokens_per_s: float
    drawn: dict[str, Drawn] = field(repr=False, compare=False)
    num_rows: int
    num_prompts: int


class Results:
    """Results files, plain or packed, read once.

    Attributes:
        setups: the header of each sitting, what its rows were made with.
        items: row id -> what is known of that row whatever the method.
        rows: (setting, method) -> (split, row id) -> row.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.setups: list[dict[str, Any]] = []
        self.items: dict[str, dict[str, Any]] = {}
        self.rows: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
        for path in paths:
            for row in read_lines(path):
                if "item" in row:
                    self.items[row["item"]] = row
                elif "method" in row:
                    of_method = self.rows.setdefault((row["setting"], row["method"]), {})
                    of_method[row["split"], row["id"]] = row
                elif "setup" in row:
                    self.setups.append(row)
        if not self.rows:
            raise InputError(f"{', '.join(map(str, paths))}: no results. Run: hilora evaluate tasks --json FILE")

    @property
    def settings(self) -> list[str]:
        """Settings that have rows, in the order of the file."""
        return list(dict.fromkeys(setting for setting, _ in self.rows))

    def methods(self, setting: str) -> list[str]:
        """Labels of the methods measured under a setting: what others are compared with, then as in the file."""
        found = [method for own, method in self.rows if own == setting]
        return sorted(found, key=lambda method: FIRST.index(method) if method in FIRST else len(FIRST))

    @property
    def clusters(self) -> dict[str, str]:
        """Task -> cluster."""
        return {item["task"]: item["cluster"] for item in self.items.values()}

    def shared(self, setting: str) -> set[tuple[str, str]]:
        """(split, id) of the rows that every method of a setting has."""
        return set.intersection(*(set(self.rows[setting, method]) for method in self.methods(setting)))

    def select(self, setting: str, method: str, keep: Callable[[Mapping[str, Any]], bool]) -> dict[str, list[Any]]:
        """Task -> its rows, in a fixed order."""
        by_task: dict[str, list[Any]] = {}
        for _, row in sorted(self.rows[setting, method].items()):
            if keep(row):
                by_task.setdefault(self.items[row["id"]]["task"], []).append(row)
        return by_task

    def scored(self, by_task: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Scored]:
        """Task -> its prompts and their statistics. What asks the same in the same words is one prompt."""
        return {task: self._scored_task(rows) for task, rows in by_task.items()}

    def _scored_task(self, rows: Sequence[Mapping[str, Any]]) -> Scored:
        found = []
        for name in self.items[rows[0]["id"]]["metrics"]:
            if name == "label_f1":
                references = [self.items[row["id"]]["reference"] for row in rows]
                metric = label_metric(sorted(set(references)))
                stats = [metric.row(row["answer"], ref) for row, ref in zip(rows, references, strict=True)]
            else:
                metric, stats = METRICS[name], [row["stats"][name] for row in rows]
            found.append((metric, np.array(stats, dtype=np.float64)))
        return by_prompt([self.prompt(row["id"]) for row in rows], found)

    def prompt(self, row_id: str) -> str:
        """Hash of a row's prompt."""
        return str(self.items[row_id]["prompt"])


def summarise(
    results: Results,
    setting: str,
    *,
    reference: str = "hilora",
    keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    seed: int = 0,
) -> list[Summary]:
    """Summaries of every method under a setting, on the rows that all of them have.

    Args:
        results: the rows.
        setting: which setting.
        reference: the method that the others are compared with.
        keep: which rows count, e.g. seen ones only.
        seed: of the bootstrap.
    """
    methods = results.methods(setting)
    shared = results.shared(setting)
    rows = {
        method: results.select(setting, method, lambda r: (r["split"], r["id"]) in shared and keep(r))
        for method in methods
    }
    if not any(rows.values()):
        raise InputError(f"No row of setting {setting!r} is there for all of {', '.join(methods)}.")
    scored = {method: results.scored(by_task) for method, by_task in rows.items()}
    drawn = draw(scored, RESAMPLES, seed)
    means = {method: mean_of(of_task.values()) for method, of_task in drawn.items()}
    averages = {method: percent(mean) for method, mean in means.items()}
    summaries = []
    for method in methods:
        flat = [row for of_task in rows[method].values() for row in of_task]
        tasks = {task: 100 * found.value for task, found in drawn[method].items()}
        other = reference if reference in methods and method != reference else None
        oracle, base = (averages[m].value if m in averages else None for m in ("oracle", "base"))
        value = averages[method].value
        summaries.append(
            Summary(
                method=method,
                average=averages[method],
                tasks=tasks,
                clusters=cluster_means(tasks, results.clusters),
                difference=None if other is None else percent_difference(means[method], means[other]),
                of_oracle=None if not oracle else 100 * value / oracle,
                gap=None if oracle is None or base is None or oracle == base else (value - base) / (oracle - base),
                harm=_harm(rows.get("base"), rows[method]),
                adapters=float(np.mean([row["adapters"] for row in flat])),
                rocs=float(np.mean([row["rocs"] for row in flat])),
                tokens_per_s=_speed([row for row in flat if not row.get("shared")]),
                drawn=drawn[method],
                num_rows=len(flat),
                num_prompts=sum(len(of_task.rows) for of_task in scored[method].values()),
            )
        )
    return summaries


def _speed(rows: Sequence[Any]) -> float:
    """New tokens per second, of rows whose answers were generated for them."""
    return float(sum(row["tokens"][1] for row in rows) / max(1e-9, sum(row["seconds"] for row in rows)))


def percent(drawn: Drawn) -> Interval:
    """A score and its interval in percent."""
    found = bootstrap(drawn.values, drawn.value)
    return Interval(100 * found.value, 100 * found.low, 100 * found.high)


def percent_difference(a: Drawn, b: Drawn) -> Difference:
    """a less b in percent."""
    d = difference(a, b)
    return Difference(100 * d.value, 100 * d.low, 100 * d.high, d.p)


def cluster_means(tasks: Mapping[str, float], clusters: Mapping[str, str]) -> dict[str, float]:
    """Cluster -> mean score of its tasks, from task -> score and task -> cluster."""
    members: dict[str, list[float]] = {}
    for task, score in tasks.items():
        members.setdefault(clusters[task], []).append(score)
    return {cluster: float(np.mean(members[cluster])) for cluster in sorted(members)}


def _harm(base: Mapping[str, Sequence[Any]] | None, rows: Mapping[str, Sequence[Any]]) -> float | None:
    """Among rows that base answers as the reference does, the share that the method does not."""
    if base is None:
        return None
    right = {(r["split"], r["id"]) for r in _flat(base) if r["stats"].get("exact_match") == [1.0]}
    wrong = [(r["split"], r["id"]) in right and r["stats"]["exact_match"] != [1.0] for r in _flat(rows)]
    return 100 * sum(wrong) / len(right) if right else None


def _flat(rows: Mapping[str, Sequence[Any]]) -> Iterable[Any]:
    """Rows that are scored by exact match."""
    return (row for of_task in rows.values() for row in of_task if "exact_match" in row["stats"])
