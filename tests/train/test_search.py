"""The search without gradients: finds a minimum within its bounds, counts every evaluation, goes on from its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hilora.errors import InputError
from hilora.train.recipe import HubRecipe
from hilora.train.search import search

TARGET = [0.5, -1.0, 0.25]


def bowl(weights: Sequence[float]) -> float:
    return sum((w - t) ** 2 for w, t in zip(weights, TARGET, strict=True))


def test_the_search_finds_a_minimum_within_the_bounds_and_pays_for_size() -> None:
    found, lowest = search(bowl, 3, HubRecipe(evaluations=400, l1=0.0))
    assert found == pytest.approx(TARGET, abs=0.02)
    assert lowest == pytest.approx(bowl(found))
    small, _ = search(bowl, 3, HubRecipe(evaluations=400, l1=3.0))
    # minimum of (w - t)^2 + |w| for each w: t moved towards 0 by a half
    assert small == pytest.approx([0.0, -0.5, 0.0], abs=0.05)
    edge, _ = search(lambda w: -sum(w), 3, HubRecipe(evaluations=200, bound=0.7, l1=0.0))
    assert max(abs(w) for w in edge) <= 0.7


def test_the_first_guess_is_the_base_model_and_every_evaluation_counts() -> None:
    asked: list[list[float]] = []
    search(lambda w: asked.append(list(w)) or 1.0, 4, HubRecipe(evaluations=13))  # type: ignore[func-returns-value]
    assert asked[0] == [0.0] * 4
    assert len(asked) == 13


def test_a_search_goes_on_from_its_log(tmp_path: Path) -> None:
    recipe, log = HubRecipe(evaluations=30), tmp_path / "log.jsonl"
    whole = search(bowl, 3, recipe, log)
    lines = log.read_text().splitlines()
    assert len(lines) == 1 + 30
    log.write_text("\n".join(lines[:18]) + '\n{"weights": [0.1')  # the last line was cut off
    calls: list[int] = []
    assert search(lambda w: calls.append(1) or bowl(w), 3, recipe, log) == whole  # type: ignore[func-returns-value]
    assert len(calls) == 13
    for other, key in ((replace(recipe, l1=0.2), ""), (recipe, "other data")):
        with pytest.raises(InputError, match="another search"):
            search(bowl, 3, other, log, key)


def test_a_search_without_members_makes_no_sense() -> None:
    with pytest.raises(InputError, match="at least 2 members"):
        HubRecipe(members=1)
