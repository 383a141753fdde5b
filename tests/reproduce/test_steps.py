"""What changed in hilora-plus, step by step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool
from hilora.jsonl import read_lines
from hilora.route import novelty


@pytest.mark.usefixtures("quick_tuning")
def test_every_step_is_measured_and_a_step_that_changes_nothing_gains_nothing(
    world: Any, use_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    script = scripts.load("reproduce/hilora/steps.py")
    use_tiny(sys.modules["experiments"])
    rows, share = tmp_path / "rows", novelty.UNSEEN_SHARE
    whole = script.replace(script.CONFIRM, per_task=4, skip=0)
    monkeypatch.setattr(script, "CONFIRM", whole)
    monkeypatch.setattr(script, "FIRST", script.replace(script.FIRST, per_task=4))
    script.carry_out([whole], tmp_path / "data", pool.path, rows, "fp32")
    options = ["--data", tmp_path / "data", "--pool", pool.path, "--before", pool.path, "--rows", rows]
    options += ["--five", tmp_path / "five"]
    monkeypatch.setattr(script, "SHARES", dict.fromkeys(script.SHARES, share))  # so that all steps are the same
    scripts.run(script, *options, "--out", tmp_path)
    assert share == novelty.UNSEEN_SHARE
    page = (tmp_path / "steps.md").read_text()
    assert page.count("\n## ") == len(script.FIRST.settings) + len(whole.settings)
    assert page.count("| +0.0 (+0.0 to +0.0) | a tie |") == 2 * page.count("\n## ")
    scripts.run(script, "--rows", rows, "--out", tmp_path)
    assert (tmp_path / "steps.md").read_text() == page
    names = {path.name for path in rows.glob("[!.]*")}
    assert names == {"confirm.jsonl.gz"} | {
        f"{script.name_of(run, step)}.jsonl.gz" for run in (script.FIRST, whole) for step in script.STEPS
    }
    shared = [row.get("shared") for row in read_lines(rows / "steps-confirm-five.jsonl.gz") if "method" in row]
    assert all(shared)  # what is answered alike is answered once


def test_the_pool_of_a_step_keeps_the_calibration_of_its_share(
    shared_pool: Any, tmp_path: Path, scripts: Any
) -> None:
    _, pool = shared_pool("llama")
    script = scripts.load("reproduce/hilora/steps.py")
    made = [script.recalibrated(pool.path, tmp_path / str(share), share) for share in (0.05, 0.5)]
    few, many = (Pool.open(path).calibration.seen_above for path in made)
    assert few < many


def test_another_share_is_called_unseen_only_meanwhile(scripts: Any) -> None:
    script, before = scripts.load("reproduce/hilora/steps.py"), novelty.UNSEEN_SHARE
    leads = [float(n) for n in range(100)]
    with script.called_unseen(0.3):
        many = novelty.seen_above(leads)
    assert before == novelty.UNSEEN_SHARE
    assert many > novelty.seen_above(leads)
