"""A composition comes out as it went in, or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.gateway.parts import Part
from hilora.vllm.wire import Composition, WireError, decode, encode, seen

ONE, OTHER = "a" * 64, "b" * 64
TWO = Composition((Part(ONE, 0.5, 3, 8), Part(f"canonical {OTHER}", -1.25, 4, 4)), "contribution")


def parts() -> st.SearchStrategy[Part]:
    hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
    contents = st.tuples(st.sampled_from(["", "canonical "]), hashes).map("".join)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    ranks = st.integers(1, 512).flatmap(lambda rank: st.tuples(st.integers(1, rank), st.just(rank)))
    return st.builds(lambda content, factor, both: Part(content, factor, *both), contents, finite, ranks)


@given(
    st.lists(parts(), min_size=1, max_size=9, unique_by=lambda part: part.content),
    st.sampled_from(["value", "magnitude", "contribution"]),
)
def test_a_composition_survives_json(some: list[Part], criterion: str) -> None:
    composition = Composition(tuple(some), criterion)
    value = json.loads(json.dumps(encode(composition)))
    assert decode(value) == composition
    assert seen(value) is seen(dict(value))


@pytest.mark.parametrize(
    "other",
    [
        Composition(TWO.parts, "value"),
        Composition(TWO.parts[:1], "contribution"),
        Composition(TWO.parts[::-1], "contribution"),
        *(
            Composition((replace(TWO.parts[0], **change), TWO.parts[1]), "contribution")
            for change in ({"content": "c" * 64}, {"factor": 0.5000001}, {"rocs": 4}, {"rank": 16})
        ),
    ],
)
def test_whatever_changes_an_answer_changes_the_digest(other: Composition) -> None:
    assert other.digest != TWO.digest


def changed(**fields: Any) -> dict[str, Any]:
    return encode(TWO) | fields


def with_row(*row: Any) -> dict[str, Any]:
    return changed(adapters=[list(row)])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is an object"),
        ("x", "is an object"),
        (changed(v=2), "version 2"),
        (changed(v=True), "version True"),
        ({key: own for key, own in encode(TWO).items() if key != "criterion"}, "A composition has"),
        (changed(more=1), "A composition has"),
        (changed(criterion="valeu"), "Did you mean 'value'?"),
        (changed(criterion=["value"]), "Unknown criterion"),
        (changed(adapters=[]), "at least one"),
        (changed(adapters="all"), "at least one"),
        (changed(digest="0"), "changed on its way"),
        (with_row(ONE, 1.0, 1), "content hash, factor"),
        (with_row("alpha", 1.0, 1, 1), "named by its content hash"),
        (with_row("merged " + ONE, 1.0, 1, 1), "named by its content hash"),
        (with_row("../" + ONE[3:], 1.0, 1, 1), "named by its content hash"),
        (with_row(ONE, 1.0, 9, 8), "1 to 8 ROCs"),
        (with_row(ONE, 1.0, 0, 8), "1 to 8 ROCs"),
        (with_row(ONE, 1.0, 1.0, 8), "rocs is a whole number"),
        (with_row(ONE, 1.0, 1, True), "rank is a whole number"),
        (with_row(ONE, math.nan, 1, 8), "finite"),
        (with_row(ONE, math.inf, 1, 8), "finite"),
        (with_row(ONE, "1", 1, 8), "finite"),
        (with_row(ONE, True, 1, 8), "finite"),
        (changed(adapters=[[ONE, 1.0, 1, 8], [ONE, 1.0, 1, 8]]), "named twice"),
    ],
)
def test_what_makes_no_sense_is_refused(value: Any, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode(value)
    assert issubclass(WireError, ValueError)  # what vLLM tells a client as its own mistake
