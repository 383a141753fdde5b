"""Laws of minutes from a log: sizes over speeds, and a process that was stopped for a while does not count."""

from __future__ import annotations

import json
import math
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def module(scripts: Any) -> Any:
    return scripts.load("reproduce/training_log.py")


def log_of(path: Path, speeds: list[float]) -> Path:
    path.write_text("".join(json.dumps({"loss": 1, "tokens_per_s": speed}) + "\n" for speed in speeds))
    return path


def test_a_step_that_was_stopped_counts_as_a_usual_one(module: Any, tmp_path: Path) -> None:
    steady, stopped = ([10.0, 20.0, 20.0, 20.0, last] for last in (20.0, 0.001))
    sizes = [600, 1200, 1200, 1200, 2400]
    found = [
        module.minutes_of(log_of(tmp_path / "log.jsonl", speeds), sizes, least=0.1) for speeds in (steady, stopped)
    ]
    assert found == [6.0, 6.0]


def test_every_step_counts_as_a_usual_one_where_none_is_fast_enough(module: Any, tmp_path: Path) -> None:
    log = log_of(tmp_path / "log.jsonl", [1.0, 2.0, 4.0, 500.0, 0.1])
    assert module.minutes_of(log, repeat(120), least=math.inf) == 5 * 120 / 2 / 60
    assert module.logged(log, "loss") == [1.0] * 5
