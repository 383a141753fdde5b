"""Harm, from rows written by hand: what base had right and a method has wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from hilora.evaluate.report import Results, summarise

Right = Mapping[tuple[str, str], bool]
"""(split, row) -> whether the method answered as the reference does."""


def written(path: Path, methods: Mapping[str, Right]) -> Results:
    """Results of rows that are scored by exact match, and of one ("x") that is not."""
    names = {row for right in methods.values() for _, row in right}
    scored = [*((row, f"task {row[0]}", "exact_match") for row in sorted(names)), ("x", "x", "f1")]
    items = [
        {"item": row, "task": task, "cluster": "c", "metrics": [metric], "reference": "r", "prompt": row}
        for row, task, metric in scored
    ]
    rows = []
    for method, right in methods.items():
        common = {"method": method, "setting": "within", "adapters": 1, "rocs": 4, "tokens": [3, 2], "seconds": 1.0}
        for (split, row), is_right in right.items():
            rows.append(common | {"id": row, "split": split, "stats": {"exact_match": [float(is_right)]}})
        rows.append(common | {"id": "x", "split": "half0", "stats": {"f1": [1.0 if method == "base" else 0.0]}})
    path.write_text("".join(json.dumps(line) + "\n" for line in items + rows))
    return Results([path])


BASE = {
    **{("half0", "a1"): True, ("half0", "a2"): True, ("half0", "b1"): True, ("half0", "b2"): False},
    **{("half1", "a1"): False, ("half1", "a2"): True, ("half1", "b1"): False, ("half1", "b2"): False},
}
"""Right on 4 of 8 rows."""


def harm_of(path: Path, right: Right) -> float | None:
    found = summarise(written(path, {"base": BASE, "method": right}), "within", reference="base")
    harms = {summary.method: summary.harm for summary in found}
    if any(BASE.values()):
        assert harms["base"] == 0
    return harms["method"]


@pytest.mark.parametrize(
    ("wrong", "share"),
    [
        ([], 0),
        ([("half0", "a2")], 25),
        ([("half0", "a2"), ("half0", "b1"), ("half1", "a2")], 75),
        ([("half1", "a1"), ("half0", "b2")], 0),  # base had these wrong, or had them right in the other half
        ([("half0", "a1"), ("half1", "a1"), ("half1", "b1")], 25),
        (list(BASE), 100),
    ],
)
def test_harm_is_the_share_of_what_base_has_right_that_the_method_has_wrong(
    tmp_path: Path, wrong: list[tuple[str, str]], share: float
) -> None:
    assert harm_of(tmp_path / "out.jsonl", {row: row not in wrong for row in BASE}) == pytest.approx(share)


def test_there_is_no_harm_to_speak_of_where_base_is_never_right_or_was_not_measured(tmp_path: Path) -> None:
    never = dict.fromkeys(BASE, False)
    found = summarise(written(tmp_path / "never.jsonl", {"base": never, "method": BASE}), "within", reference="base")
    assert [summary.harm for summary in found] == [None, None]
    found = summarise(written(tmp_path / "none.jsonl", {"method": BASE}), "within")
    assert [summary.harm for summary in found] == [None]
