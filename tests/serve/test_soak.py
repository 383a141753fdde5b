"""The parts of the soak run from start to end on little, and its page is what its rows give."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hilora.jsonl import read_lines

ROOT = Path(__file__).parents[2]
SCALES = {
    "churn": 0.004,
    "killed": 0.02,
    "flat": 0.004,
    "clients": 0.02,
    "malformed": 0.02,
    "longest": 0.02,
    "crowded": 0.02,
    "clashes": 0.02,
    "full": 0.01,
    "spoiled": 0.01,
    "clock": 0.01,
    "downgraded": 1.0,
}
"""Of what takes a few seconds."""


@pytest.fixture
def soak(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return scripts.load("benchmarks/soak.py")


@pytest.mark.parametrize("part", SCALES)
def test_a_part_finds_nothing_wrong_in_a_little_while(part: str, tmp_path: Path) -> None:
    """In a process of its own: clients of a soak vanish, and close nothing."""
    out = tmp_path / "soak.jsonl"
    command = [sys.executable, "benchmarks/soak.py", "--part", part, "--scale", str(SCALES[part]), "--json", str(out)]
    for _ in range(2):  # what is there is not run again
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    about, *rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert about["date"]
    assert {row["part"] for row in rows} == {part}
    assert [row["wrong"] for row in rows] == [[]] * len(rows)
    assert sum(sum(row["counts"].values()) for row in rows) > 0


def test_every_part_is_run_by_a_test(soak: Any) -> None:
    assert {*soak.PARTS} == {*SCALES, "churn-default"}  # which is the code of "churn", over real models, and long


def test_the_page_is_what_the_rows_give(soak: Any) -> None:
    page = (ROOT / "benchmarks" / "soak.md").read_text()
    rows = list(read_lines(ROOT / "benchmarks" / "soak.jsonl"))
    assert soak.table(rows) == page
    assert {row["part"] for row in rows if "part" in row} == {*soak.PARTS}
    assert soak.table([*rows[:-1], rows[-1] | {"wrong": ["It fell."]}]) != page


def test_what_was_wrong_is_told(scripts: Any, soak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(scale: float, home: Path, seed: int) -> Any:
        yield {"what": "falling", "counts": {"falls": 2000}, "wrong": ["It fell."]}

    monkeypatch.setattr(import_module("soaking.killed"), "run", run)
    out = tmp_path / "soak.jsonl"
    with pytest.raises(SystemExit, match="It fell"):
        scripts.run(soak, "--part", "killed", "--json", out)
    page = soak.table(list(read_lines(out)))
    for text in ("1 things were wrong", "| falls | 2,000 |", "| **wrong** | **1** |", "* It fell."):
        assert text in page
