"""Answers compared with references, and the answer that reads no prompt."""

from __future__ import annotations

import pytest

from hilora.evaluate.lines import constant_answers
from hilora.evaluate.metrics import exact_match, most_frequent, normalise, rouge
from hilora.evaluate.rows import Row


def test_exact_match_compares_after_the_stated_normalisation() -> None:
    assert normalise("  \u201cYes\u201d. \n") == "\u201cyes\u201d"
    assert exact_match("  Positive.", "positive") == 1.0
    assert exact_match("not positive", "positive") == 0.0
    assert exact_match("New   York", "new york") == 1.0


def test_rouge_l_is_one_for_the_reference_and_zero_for_other_words() -> None:
    assert rouge("a dog runs in the park", "a dog runs in the park", "rougeL") == 1.0
    assert rouge("nothing alike", "a dog runs", "rougeL") == 0.0
    # 3 of 4 words in order: precision 3/4, recall 3/3
    assert rouge("a dog quickly runs", "a dog runs", "rougeL") == pytest.approx(2 * 0.75 / 1.75)


def test_the_constant_answer_is_the_most_frequent_one() -> None:
    assert most_frequent(["a", "b", "b", "c"]) == "b"


def test_each_task_has_a_constant_answer_of_its_own() -> None:
    """The most frequent of all tasks is the answer to one of them alone."""
    targets = {"short": "aab", "long": "bbbbbbc", "even": "dc"}
    rows = [
        Row(f"{task}/{n}", task, "cluster", "x", target, ("exact_match",))
        for task, of_task in targets.items()
        for n, target in enumerate(of_task)
    ]
    assert constant_answers(rows) == {"short": "a", "long": "b", "even": "c"}
