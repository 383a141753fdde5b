"""Smoke tests: the bounds' tables run from start to end on tiny files, and are those of the committed numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilora.evaluate.routing import TOPS  # before the embedder that it names is replaced

ROOT = Path(__file__).parents[2]
SCRIPT = "reproduce/bounds/bounds.py"


def test_bounds_stand_beside_what_is_measured(
    tmp_path: Path, tiny: Any, embedder: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **_: embedder)
    for name, count, seed in (("samples", 12, 0), ("test_half", 5, 1)):
        rows = [{"task": task, "inputs": text} for task in tiny.tasks for text in tiny.texts(task, count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = scripts.load(SCRIPT)
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    made = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    result = json.loads(made["bounds.json"])
    assert set(TOPS) <= set(result["ks"])
    for model in ("own", "tied"):
        for part in ("bound", "drawn", "held", "test"):
            rates = result[model]["seen"][part]
            assert sorted(rates) == sorted(tiny.tasks)
            assert all(1 >= row[0] >= row[-1] >= 0 for row in rates.values())
        assert sorted(result[model]["unseen"]) == sorted(tiny.tasks)
        assert all(row["nearest"] != task for task, row in result[model]["unseen"].items())
    assert not any(text in made["bounds.json"] for task in tiny.tasks for text in tiny.texts(task, 12))
    (tmp_path / "out" / "bounds.md").unlink()
    scripts.run(scripts.load(SCRIPT), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "bounds.md").read_text() == made["bounds.md"]


def test_the_committed_tables_are_those_of_the_committed_numbers(tmp_path: Path, scripts: Any) -> None:
    home = ROOT / "reproduce" / "bounds"
    (tmp_path / "bounds.json").write_text((home / "bounds.json").read_text())
    scripts.run(scripts.load(SCRIPT), "--out", tmp_path)
    assert (tmp_path / "bounds.md").read_text() == (home / "bounds.md").read_text()
