"""Tables of results files: what asks the same is one prompt, in however many pools and under whatever name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilora.evaluate.report import Results, Summary, summarise

PROMPTS = 20
METHODS = ("base", "hilora", "mixture")


def results(path: Path, splits: list[str], names: list[list[str]], *, alike: bool = True) -> dict[str, Summary]:
    """Summaries of rows made up: each prompt under its names, in every split; `alike`, with the same answers."""
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for task in ("a", "b"):
        right = rng.integers(2, size=(PROMPTS, len(METHODS)))
        for n, own in enumerate(names):
            for name in own:
                item = {"item": f"{task}/{name}", "task": task, "cluster": "c", "prompt": f"{task} {n}"}
                lines.append(item | {"reference": "r", "metrics": ["exact_match"]})
                for j, method in enumerate(METHODS):
                    for split in splits:
                        hit = right[n, j] if alike else rng.integers(2)
                        row = {"method": method, "id": f"{task}/{name}", "setting": "x", "split": split, "seen": True}
                        row |= {"stats": {"exact_match": [float(hit)]}, "answer": "r", "tokens": [1, 1]}
                        lines.append(row | {"seconds": 1.0, "adapters": 1, "rocs": 8})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {s.method: s for s in summarise(Results([path]), "x")}


def without_rows(summaries: dict[str, Summary]) -> list[Summary]:
    return [replace(s, num_rows=0, tokens_per_s=0.0) for s in summaries.values()]


ONE = [[f"{n:02}"] for n in range(PROMPTS)]


def test_rows_of_four_halves_with_the_same_answers_are_as_sure_as_one(tmp_path: Path) -> None:
    one = results(tmp_path / "one", ["only"], ONE)
    four = results(tmp_path / "four", [f"half{n}" for n in range(4)], ONE)
    assert without_rows(four) == without_rows(one)
    assert [(s.num_rows, s.num_prompts) for s in four.values()] == [(8 * PROMPTS, 2 * PROMPTS)] * 3
    assert one["mixture"].difference is not None
    assert one["mixture"].average.low < one["mixture"].average.high


def test_one_prompt_under_two_names_is_one(tmp_path: Path) -> None:
    one = results(tmp_path / "one", ["only"], ONE)
    two = results(tmp_path / "two", ["only"], [[f"{n:02}", f"{n:02} again"] for n in range(PROMPTS)])
    assert without_rows(two) == without_rows(one)
    assert two["base"].num_prompts == 2 * PROMPTS


def test_halves_whose_answers_differ_tell_more_than_one_half(tmp_path: Path) -> None:
    one = results(tmp_path / "one", ["only"], ONE, alike=False)["hilora"].average
    four = results(tmp_path / "four", [f"half{n}" for n in range(4)], ONE, alike=False)["hilora"].average
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.3)
