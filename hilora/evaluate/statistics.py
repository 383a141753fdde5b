"""Bootstrap intervals of metrics and of differences between methods (Efron and Tibshirani 1993).

Prompts are resampled within a task, each with all its rows: answers to one prompt in several pools are not
independent (the cluster bootstrap: Davison and Hinkley 1997, on hierarchical data). Tasks are fixed. A resample is a
vector of weights, how often each prompt is drawn, so its value is metric(weights @ stats): exact for corpus metrics,
nothing is scored again. A task's score is the mean of its metrics, a method's score the mean over tasks. Two methods
are compared on the same resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hilora.errors import InputError
from hilora.evaluate.metrics import Floats, Ints, Metric

ROUNDING = 1e-12


@dataclass(frozen=True)
class Scored:
    """A task's prompts under one method, each with all its rows.

    Attributes:
        rows: how many rows each prompt has, (prompt,).
        metrics: the task's metrics, each with its statistics summed over the rows of every prompt, (prompt, stat).
    """

    rows: Ints
    metrics: Sequence[tuple[Metric, Floats]]


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


def by_prompt(prompts: Sequence[Hashable], metrics: Sequence[tuple[Metric, Floats]]) -> Scored:
    """Rows gathered by their prompts, in the order in which these come first.

    Args:
        prompts: which prompt each row answers, (row,).
        metrics: each with its statistics of the rows, (row, stat).
    """
    place: dict[Hashable, int] = {}
    owner = np.array([place.setdefault(prompt, len(place)) for prompt in prompts], dtype=np.int64)  # (row,)

    def summed(stats: Floats) -> Floats:
        sums = np.zeros((len(place), stats.shape[1]))
        np.add.at(sums, owner, stats)
        return sums

    counts = np.bincount(owner, minlength=len(place))
    return Scored(counts, [(metric, summed(stats)) for metric, stats in metrics])


def resamples(count: int, num: int, seed: int) -> Ints:
    """How often each prompt is drawn when `count` are drawn with replacement: (num, count), rows sum to count.

    Raises:
        InputError: there is no prompt to draw.
    """
    if count < 1:
        raise InputError("Nothing to resample: got 0 prompts, expected at least 1.")
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num)


def task_values(stats: Floats, rows: Ints, weights: Ints | None, metric: Metric) -> Floats:
    """The metric's value of every resample, (num,); without weights that of the prompts as they are, (1,).

    Args:
        stats: (prompt, stat), sums over each prompt's rows.
        rows: (prompt,), how many those are.
        weights: (num, prompt) from `resamples`.
        metric: how sums become a value.
    """
    if weights is None:
        weights = np.ones((1, len(stats)), dtype=np.int64)
    # value_b = metric(sum_p weight_bp stat_p, sum_p weight_bp rows_p)
    return metric.value(weights.astype(np.float64) @ stats, weights @ rows)


def task_scores(scored: Scored, weights: Ints | None) -> Floats:
    """A task's score, the mean of its metrics, of every resample: (num,), or (1,) without weights."""
    values = np.stack([task_values(stats, scored.rows, weights, metric) for metric, stats in scored.metrics])
    return np.asarray(values.mean(0))


@dataclass(frozen=True)
class Drawn:
    """A score of the prompts as they are, and of every resample.

    Attributes:
        value: of the prompts as they are.
        values: of the resamples, (num,).
    """

    value: float
    values: Floats


def draw(sides: Mapping[str, Mapping[str, Scored]], num: int, seed: int) -> dict[str, dict[str, Drawn]]:
    """Side -> task -> its score, all sides on the same resamples.

    Each task has resamples of its own (`task_seed`): else errors would add up in a mean over tasks.

    Args:
        sides: name -> task -> its prompts.
        num: number of resamples.
        seed: of the resamples.

    Raises:
        InputError: a side has no task, or sides differ in tasks, metrics, or prompts and their numbers of rows.
    """
    first = next(iter(sides.values()))
    _check(sides, first)
    found: dict[str, dict[str, Drawn]] = {name: {} for name in sides}
    for task in sorted(first):
        weights = resamples(len(first[task].rows), num, task_seed(seed, task))
        for name, side in sides.items():
            point = float(task_scores(side[task], None)[0])
            found[name][task] = Drawn(point, task_scores(side[task], weights))
    return found


def mean_of(drawn: Collection[Drawn]) -> Drawn:
    """The stratified bootstrap of a mean over tasks."""
    return Drawn(float(np.mean([each.value for each in drawn])), np.mean([each.values for each in drawn], axis=0))


def _check(sides: Mapping[str, Mapping[str, Scored]], first: Mapping[str, Scored]) -> None:
    for side in sides.values():
        if not side or side.keys() != first.keys():
            only = sorted(first.keys() ^ side.keys())
            raise InputError(f"All sides need the same tasks, at least one; only one has {only}.")
        for task, own in side.items():
            shapes = [[(metric.name, *stats.shape) for metric, stats in each.metrics] for each in (first[task], own)]
            if shapes[0] != shapes[1] or not shapes[0] or not np.array_equal(first[task].rows, own.rows):
                counts = " and ".join(f"{int(x.rows.sum())} of {len(x.rows)} prompts" for x in (first[task], own))
                raise InputError(
                    f"All sides need the same metrics of the same rows of {task!r}; got {shapes}, {counts}."
                )


def bootstrap(values: Floats, point: float) -> Interval:
    """The percentile interval: 95 % of the resampled values (num,) lie in it, half of the others on each side."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(point), float(low), float(high))


def difference(a: Drawn, b: Drawn) -> Difference:
    """a less b, both drawn on the same resamples.

    The p-value is that of the test which inverts the percentile interval: twice the share of resamples on the
    far side of zero, those at zero included, and one more on either count, so that it is never 0. With few prompts
    per task it is too small, as is the interval.
    """
    values = a.values - b.values
    found = bootstrap(values, a.value - b.value)
    # what cancels exactly may come out as a rounding error
    side = min(int((values <= ROUNDING).sum()), int((values >= -ROUNDING).sum()))
    return Difference(found.value, found.low, found.high, p=min(1.0, 2 * (side + 1) / (len(values) + 1)))
