"""Bootstrap intervals of metrics and of differences between methods (Efron and Tibshirani 1993).

Rows are resampled within a task; tasks are fixed. A resample is a vector of weights, how often each row is
drawn, so its value is metric(weights @ stats): exact for corpus metrics, nothing is scored again. A task's score is
the mean of its metrics, a method's score the mean over tasks. Two methods are compared on the same resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hilora.errors import InputError
from hilora.evaluate.metrics import Floats, Ints, Metric

Scored = Sequence[tuple[Metric, Floats]]
"""A task's metrics, each with its statistics of the same rows in the same order, (row, stat)."""


ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, in the value's units."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A difference, its 95 % interval, and the two-sided p-value of there being none."""

    p: float


def task_seed(seed: int, task: str) -> int:
    """A seed of the task's own: tasks of one size must not be resampled alike."""
    digest = hashlib.blake2b(f"{seed}\0{task}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def resamples(count: int, num: int, seed: int) -> Ints:
    """How often each row is drawn when `count` rows are drawn with replacement: (num, count), rows sum to count.

    Raises:
        InputError: there is no row to draw.
    """
    if count < 1:
        raise InputError("Nothing to resample: got 0 rows, expected at least 1.")
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num)


def task_values(stats: Floats, weights: Ints | None, metric: Metric) -> Floats:
    """The metric's value of every resample, (num,); without weights that of the rows as they are, (1,).

    Args:
        stats: (row, stat) from `metric.row`.
        weights: (num, row) from `resamples`.
        metric: how sums become a value.
    """
    if weights is None:
        weights = np.ones((1, len(stats)), dtype=np.int64)
    # value_b = metric(sum_r weight_br stat_r)
    return metric.value(weights.astype(np.float64) @ stats, weights.sum(1))


def task_scores(scored: Scored, weights: Ints | None) -> Floats:
    """A task's score, the mean of its metrics, of every resample: (num,), or (1,) without weights."""
    values = np.stack([task_values(stats, weights, metric) for metric, stats in scored])
    return np.asarray(values.mean(0))


def mean_over_tasks(values: Sequence[Floats]) -> Floats:
    """The stratified bootstrap of a mean over tasks: from (num,) values per task to (num,).

    Give each task resamples of its own (`task_seed`), or their errors add up instead of averaging out.
    """
    return np.asarray(np.stack(values).mean(0))


def bootstrap(values: Floats, point: float) -> Interval:
    """The percentile interval: 95 % of the resampled values (num,) lie in it, half of the others on each side."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(point), float(low), float(high))


def paired_difference(
    a: Mapping[str, Scored], b: Mapping[str, Scored], num: int = 10_000, seed: int = 0
) -> Difference:
    """Mean over tasks of a minus that of b, both scored on the same resamples of the same rows.

    The p-value is that of the test which inverts the percentile interval: twice the share of resamples on the
    far side of zero, those at zero included, and one more on either count, so that it is never 0. With few rows per
    task it is too small, as is the interval.

    Args:
        a, b: task to its metrics and their statistics (row, stat); rows in the same order in both.
        num: number of resamples.
        seed: of the resamples; each task has its own.

    Raises:
        InputError: a and b differ in tasks, metrics or number of rows.
    """
    if not a or a.keys() != b.keys():
        raise InputError(f"Both sides need the same tasks, at least one; only one has {sorted(a.keys() ^ b.keys())}.")
    points, drawn = [], []
    for task in sorted(a):
        shapes = [[(metric.name, *stats.shape) for metric, stats in side[task]] for side in (a, b)]
        counts = {rows for side in shapes for _, rows, _ in side}
        if shapes[0] != shapes[1] or len(counts) != 1:
            raise InputError(f"Both sides need the same metrics of the same rows of {task!r}; got {shapes}.")
        weights = resamples(counts.pop(), num, task_seed(seed, task))
        points.append(task_scores(a[task], None) - task_scores(b[task], None))
        drawn.append(task_scores(a[task], weights) - task_scores(b[task], weights))
    point, values = float(mean_over_tasks(points)[0]), mean_over_tasks(drawn)
    interval = bootstrap(values, point)
    # what cancels exactly may come out as a rounding error
    side = min(int((values <= ROUNDING).sum()), int((values >= -ROUNDING).sum()))
    return Difference(interval.value, interval.low, interval.high, p=min(1.0, 2 * (side + 1) / (num + 1)))
