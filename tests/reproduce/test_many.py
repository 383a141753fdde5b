"""More samples an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool
from tests.reproduce.conftest import CLUSTERS

pytestmark = pytest.mark.usefixtures("quick_tuning")


def test_methods_stand_with_few_and_with_many_samples_side_by_side(
    world: Any, use_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    run, many = (scripts.load(f"reproduce/hilora/{name}.py") for name in ("run", "many"))
    use_tiny(sys.modules["experiments"])
    before = {entry.name: entry.samples for entry in pool.entries}
    ways = ("base", "oracle", *many.METHODS)
    monkeypatch.setattr(run, "RUNS", [run.Run(name, [name], ways, run.VAL, per_task=4) for name in many.TITLES])
    made, rows = tmp_path / "runs" / "many", tmp_path / "rows"
    common = ["--data", tmp_path / "data", "--pool", pool.path, "--dtype", "fp32"]
    scripts.run(run, *common, "--out", rows)
    scripts.run(many, *common, "--many", made, "--rows", rows, "--out", tmp_path)
    assert [entry.num_samples for entry in Pool.open(made).entries] == [8] * len(CLUSTERS)  # all that there are
    assert {entry.name: entry.samples for entry in Pool.open(pool.path).entries} == before
    page = (tmp_path / "many.md").read_text()
    assert page.count("\n## ") == 2
    assert all(page.count(f"\n| {method} | ") == 2 for method in many.METHODS)
    assert "16 prompts of 4 tasks. base " in page
    scripts.run(many, "--rows", rows, "--out", tmp_path)
    assert (tmp_path / "many.md").read_text() == page
