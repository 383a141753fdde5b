"""Resampling: equal to scoring every resample from its texts, of the coverage it claims, and paired."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import sacrebleu
from scipy.stats import chisquare

from hilora.errors import InputError
from hilora.evaluate.metrics import METRICS, Floats, Metric, label_metric
from hilora.evaluate.statistics import (
    Difference,
    Interval,
    Scored,
    bootstrap,
    by_prompt,
    difference,
    draw,
    mean_of,
    resamples,
    task_scores,
    task_seed,
    task_values,
)

MEAN = METRICS["exact_match"]


def tasks_of(rows: Floats) -> dict[str, Scored]:
    """(task, row) scores as tasks with one metric."""
    return {f"task {i}": alone((MEAN, scores[:, None])) for i, scores in enumerate(rows)}


def alone(*metrics: tuple[Metric, Floats]) -> Scored:
    """Rows of as many prompts."""
    return Scored(np.ones(len(metrics[0][1]), dtype=np.int64), metrics)


def paired_difference(a: dict[str, Scored], b: dict[str, Scored], *, num: int = 2000, seed: int = 0) -> Difference:
    """Mean over tasks of a less that of b."""
    drawn = draw({"a": a, "b": b}, num, seed)
    return difference(mean_of(drawn["a"].values()), mean_of(drawn["b"].values()))


def correlated(seed: int, num_tasks: int = 3, num_rows: int = 40, gain: float = 0.05) -> tuple[Floats, Floats]:
    """Scores of two methods that mostly fail on the same rows; a is better by `gain`."""
    rng = np.random.default_rng(seed)
    hard = rng.random((num_tasks, num_rows))
    noise = rng.normal(0, 0.1, (2, num_tasks, num_rows))
    return hard + gain + noise[0], hard + noise[1]


# resamples


def test_resamples_draw_as_many_rows_as_there_are_and_all_alike() -> None:
    weights = resamples(50, 2000, 0)
    assert weights.shape == (2000, 50)
    assert weights.dtype == np.int64
    assert weights.sum(1).tolist() == [50] * 2000
    assert chisquare(weights.sum(0)).pvalue > 1e-3
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.03)


def test_resamples_depend_on_seed_and_task_alone() -> None:
    assert [np.array_equal(resamples(9, 5, 1), resamples(9, 5, seed)) for seed in (1, 2)] == [True, False]
    assert len({task_seed(seed, task) for seed in (0, 1, -1) for task in ("", "a", "b", "1\0a")}) == 12


# prompts with several rows

LABELS = label_metric(["a", "b"])


def rows_of(seed: int, count: int = 30) -> list[tuple[Metric, Floats]]:
    """Rows of a method under a metric that is a mean, and one that is not."""
    rng = np.random.default_rng(seed)
    answers, references = rng.choice(["a", "b", "c"], count), rng.choice(["a", "b"], count)
    labels = [LABELS.row(*pair) for pair in zip(answers, references, strict=True)]
    return [(MEAN, rng.integers(2, size=(count, 1)).astype(float)), (LABELS, np.array(labels))]


def copied(metrics: list[tuple[Metric, Floats]], times: int) -> list[tuple[Metric, Floats]]:
    return [(metric, np.tile(stats, (times, 1))) for metric, stats in metrics]


@pytest.mark.parametrize("times", [2, 4])
def test_rows_copied_under_their_prompts_leave_every_interval_as_it_was(times: int) -> None:
    a, b = rows_of(1), rows_of(2)
    single = [by_prompt(range(30), side) for side in (a, b)]
    multiple = [by_prompt([*range(30)] * times, copied(side, times)) for side in (a, b)]
    assert multiple[0].rows.tolist() == [times] * 30
    weights = resamples(30, 500, 3)
    assert task_scores(multiple[0], weights).tolist() == task_scores(single[0], weights).tolist()
    assert paired_difference({"t": multiple[0]}, {"t": multiple[1]}, num=500) == paired_difference(
        {"t": single[0]}, {"t": single[1]}, num=500
    )


def test_rows_counted_as_prompts_would_make_the_interval_of_copies_narrower() -> None:
    a, b = ({"t": alone(*copied(rows_of(seed), 4))} for seed in (1, 2))
    apart = paired_difference(a, b, num=2000)
    one = paired_difference({"t": alone(*rows_of(1))}, {"t": alone(*rows_of(2))}, num=2000)
    assert apart.high - apart.low < 0.6 * (one.high - one.low)


def test_with_one_row_a_prompt_nothing_is_changed_to_the_letter() -> None:
    metrics = rows_of(4)
    found = by_prompt([f"prompt {n}" for n in range(30)], metrics)
    assert found.rows.tolist() == [1] * 30
    for (metric, sums), (same, stats) in zip(found.metrics, metrics, strict=True):
        assert metric is same
        assert sums.tolist() == stats.tolist()


def test_a_resample_takes_all_rows_of_a_prompt_or_none() -> None:
    stats = np.array([[1.0], [0.0], [0.5], [1.0]])
    found = by_prompt(["a", "b", "a", "a"], [(MEAN, stats)])
    assert found.rows.tolist() == [3, 1]
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    assert task_scores(found, weights).tolist() == pytest.approx([2.5 / 4, 2.5 / 3, 0])
    assert task_scores(found, None).tolist() == pytest.approx([2.5 / 4])


def test_intervals_of_prompts_with_several_rows_cover_the_truth_about_as_often_as_they_claim() -> None:
    covered = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        chance = rng.random((60, 1))  # of one prompt, for all its rows
        stats = (rng.random((60, 4)) < chance).astype(float)
        found = by_prompt([n for n in range(60) for _ in range(4)], [(MEAN, stats.reshape(-1, 1))])
        interval = bootstrap(task_scores(found, resamples(60, 400, trial)), float(stats.mean()))
        covered += interval.low <= 0.5 <= interval.high
    assert 0.90 < covered / 300 < 0.98


# values of resamples


def test_bleu_of_a_resample_is_sacrebleus_of_its_texts() -> None:
    rng = np.random.default_rng(0)
    sides = [[" ".join(rng.choice(list("abcd"), rng.integers(1, 9))) for _ in range(12)] for _ in range(2)]
    stats = np.array([METRICS["bleu"].row(*pair) for pair in zip(*sides, strict=True)])
    weights = resamples(12, 40, 3)
    answers, references = (np.array(side) for side in sides)
    expected = []
    for weight in weights:
        drawn = np.repeat(np.arange(12), weight)
        expected.append(sacrebleu.corpus_bleu(answers[drawn].tolist(), [references[drawn].tolist()]).score / 100)
    assert np.ptp(expected) > 0.05
    assert task_values(stats, np.ones(12, int), weights, METRICS["bleu"]) == pytest.approx(expected, abs=1e-12)


def test_without_weights_the_value_is_that_of_the_rows() -> None:
    stats = np.array([[1.0], [0.0], [0.5]])
    ones = np.ones(3, int)
    assert task_values(stats, ones, None, MEAN).tolist() == [0.5]
    assert task_values(stats, ones, np.array([[0, 3, 0], [2, 0, 1]]), MEAN).tolist() == pytest.approx([0, 2.5 / 3])


def test_a_tasks_score_is_the_mean_of_its_metrics() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.random((2, 20, 1))
    weights = resamples(20, 30, 0)
    expected = (weights @ one + weights @ two)[:, 0] / 40
    assert task_scores(alone((MEAN, one), (METRICS["f1"], two)), weights) == pytest.approx(expected)


# intervals


def test_the_interval_is_that_of_a_plain_loop() -> None:
    scores = np.random.default_rng(3).random(60) ** 2
    found = bootstrap(task_scores(alone((MEAN, scores[:, None])), resamples(60, 20_000, 0)), scores.mean())
    rng = np.random.default_rng(4)
    loop = sorted(np.mean([scores[rng.integers(60)] for _ in range(60)]) for _ in range(3000))
    assert found.value == scores.mean()
    assert found.low == pytest.approx(loop[75], abs=0.006)
    assert found.high == pytest.approx(loop[-76], abs=0.006)


def test_intervals_over_tasks_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng, chances, sizes = np.random.default_rng(5), (0.2, 0.5, 0.7, 0.9), (80, 30, 60, 60)
    covered = 0
    for trial in range(400):
        stats = [(rng.random((size, 1)) < p).astype(float) for p, size in zip(chances, sizes, strict=True)]
        side = {str(i): alone((MEAN, s)) for i, s in enumerate(stats)}
        drawn = mean_of(draw({"a": side}, 400, trial)["a"].values())
        interval = bootstrap(drawn.values, drawn.value)
        assert interval.low <= interval.value <= interval.high
        covered += interval.low <= np.mean(chances) <= interval.high
    assert 0.90 < covered / 400 < 0.98


def test_tasks_of_one_size_are_resampled_apart() -> None:
    """Else the mean over tasks would be as uncertain as one of them."""
    rows = np.repeat(np.random.default_rng(6).random((1, 50)), 16, axis=0)
    one = paired_difference(tasks_of(rows[:1]), tasks_of(0 * rows[:1]), num=2000)
    all_ = paired_difference(tasks_of(rows), tasks_of(0 * rows), num=2000)
    assert all_.high - all_.low == pytest.approx((one.high - one.low) / 4, rel=0.15)


# paired differences


def test_a_paired_difference_is_that_of_a_plain_loop_over_the_same_resamples() -> None:
    a, b = correlated(7)
    found = paired_difference(tasks_of(a), tasks_of(b), num=500, seed=9)
    drawn = []
    weights = [resamples(40, 500, task_seed(9, task)) for task in tasks_of(a)]
    for k in range(500):
        rows = [np.repeat(np.arange(40), weight[k]) for weight in weights]
        drawn.append(np.mean([a[i, r].mean() - b[i, r].mean() for i, r in enumerate(rows)]))
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found.p == pytest.approx(
        min(1, 2 * (min(np.sum(np.less(drawn, 0)), np.sum(np.greater(drawn, 0))) + 1) / 501)
    )


def test_pairing_narrows_the_interval_of_correlated_methods() -> None:
    a, b = correlated(8)
    paired = paired_difference(tasks_of(a), tasks_of(b), num=2000)
    one, other = (mean_of(draw({"x": tasks_of(side)}, 2000, i)["x"].values()) for i, side in enumerate((a, b)))
    unpaired = difference(one, other)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)
    assert paired.p < 0.01
    assert unpaired.low < 0 < unpaired.high


def test_swapping_the_sides_mirrors_the_difference() -> None:
    a, b = (tasks_of(side) for side in correlated(10, gain=0.01))
    one, other = paired_difference(a, b, num=999), paired_difference(b, a, num=999)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert other.p == one.p


def test_without_a_difference_few_p_values_are_small() -> None:
    found = [paired_difference(*map(tasks_of, correlated(seed, gain=0)), num=300).p for seed in range(300)]
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.10
    assert 0.4 < np.mean(found) < 0.6


def test_a_method_does_not_differ_from_itself() -> None:
    a, _ = correlated(12)
    found = paired_difference(tasks_of(a), tasks_of(a), num=100)
    assert dataclasses.astuple(found) == (0, 0, 0, 1)


def test_one_row_or_equal_rows_have_an_interval_of_no_width() -> None:
    for rows in (1, 7):
        stats = np.full((rows, 1), 0.25)
        drawn = task_scores(alone((MEAN, stats)), resamples(rows, 50, 0))
        assert bootstrap(drawn, 0.25) == Interval(0.25, 0.25, 0.25)
        found = paired_difference({"t": alone((MEAN, stats))}, {"t": alone((MEAN, 0 * stats))}, num=99)
        assert dataclasses.astuple(found) == (0.25, 0.25, 0.25, 0.02)


def test_sides_that_cannot_be_paired_are_refused() -> None:
    stats = np.ones((4, 1))
    side = {"t": alone((MEAN, stats))}
    others = [
        alone((MEAN, stats[1:])),
        alone((METRICS["f1"], stats)),
        Scored(np.ones(4, int), []),
        Scored(np.array([1, 1, 1, 2]), [(MEAN, stats)]),
    ]
    for other in others:
        with pytest.raises(InputError, match="same metrics of the same rows of 't'"):
            paired_difference(side, {"t": other})
    with pytest.raises(InputError, match=re.escape("only one has ['u']")):
        paired_difference(side, {**side, "u": side["t"]})
    with pytest.raises(InputError, match="at least one"):
        paired_difference({}, {})
    with pytest.raises(InputError, match="got 0 prompts"):
        resamples(0, 5, 0)
