"""Outlines: how a text begins and ends, and how it measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.route.features import LONGEST, hash_terms
from hilora.route.outline import EDGE, MARKS, STEP, outline

TEXTS = [
    "",
    " ",
    "\n",
    "hi",
    "Is it so?\n- yes\n- no",
    "\ud800 half",
    "日本語の文",
    "a " * 5000,
    "ONE two\n\nthree 4.",
]


def common(one: str, other: str) -> int:
    return len(set(outline(one).tolist()) & set(outline(other).tolist()))


@given(st.text())
def test_every_text_has_as_many_different_marks(text: str) -> None:
    marks = outline(text)
    assert marks.dtype == np.int32
    assert marks.shape == (MARKS,)
    assert len(set(marks.tolist())) == MARKS
    assert (marks >= 0).all()


@pytest.mark.parametrize("text", TEXTS)
def test_terms_hold_the_outline_of_what_is_looked_at(text: str) -> None:
    outlines = hash_terms(["before", text, "after"]).outlines
    assert outlines is not None
    assert outlines[1].tolist() == outline(text).tolist()


def test_of_a_long_text_the_outline_is_of_both_ends() -> None:
    long = "begin " + "x" * (2 * LONGEST) + " end"
    outlines = hash_terms([long]).outlines
    assert outlines is not None
    assert outlines[0].tolist() == outline(long[: LONGEST // 2] + long[-LONGEST // 2 :]).tolist()


def test_texts_that_begin_alike_share_marks_of_their_beginning() -> None:
    words = ["please", "say", "whether", "this", "holds"]
    for alike in range(len(words) + 1):
        other = [*words[:alike], *(f"other{i}" for i in range(alike, len(words)))]
        begin = set(outline(" ".join(words)).tolist()[: 2 * EDGE : 2]) & set(outline(" ".join(other)).tolist())
        end = set(outline(" ".join(words[::-1])).tolist()[1 : 2 * EDGE : 2])
        assert len(begin) == min(alike, EDGE)
        assert len(end & set(outline(" ".join(other[::-1])).tolist())) == min(alike, EDGE)


@given(st.integers(0, 3000), st.floats(0, 1))
def test_numbers_less_than_half_a_step_apart_have_a_mark_in_common(count: int, part: float) -> None:
    more = math.floor((1 + count) * math.exp(part * 0.499 / STEP)) - 1
    one, other = "a" + "?" * count, "a" + "?" * more
    assert abs(math.log1p(more) - math.log1p(count)) < 0.5 / STEP
    questions = [set(outline(text).tolist()[2 * EDGE : 2 * EDGE + 2]) for text in (one, other)]
    assert questions[0] & questions[1]


def test_what_a_text_says_in_its_middle_is_no_mark() -> None:
    one = "Please translate to German: The dogs are out. Answer in one word"
    other = "Please translate to German: The cats are ill. Answer in one word"
    assert outline(one).tolist() == outline(other).tolist()
    assert common(one, "A wholly different thing, with 12 numbers\nand lines") < MARKS / 2
