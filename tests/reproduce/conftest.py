"""A tiny pool and data for the scripts that reproduce papers, and the tiny model in place of theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLUSTERS = {"alpha": "nli", "beta": "nli", "gamma": "closed_book QA", "delta": "closed_book QA"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_pool: Any, tiny: Any, tokenizer: Any) -> Any:
    """A pool, and data in the layout that the scripts read; the scripts load the tiny model."""
    model, pool = shared_pool("llama")
    rows = [
        {"task": task, "cluster": cluster, "inputs": text, "targets": "b" if n % 3 else "a"}
        for task, cluster in CLUSTERS.items()
        for n, text in enumerate(tiny.texts(task, 8, seed=5))
    ]
    val = tmp_path / "data" / "flan_mini" / "val"
    val.mkdir(parents=True)
    for task in CLUSTERS:
        lines = [json.dumps(row) for row in rows if row["task"] == task]
        (val / f"{task}.jsonl").write_text("\n".join(lines))
    shutil.copytree(val, val.with_name("train"))
    (tmp_path / "data" / "ramole48").mkdir()
    for name in ("test_half", "samples"):
        (tmp_path / "data" / "ramole48" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pool, model


@pytest.fixture
def use_tiny(world: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts the tiny model and embedder in place of those that a script, or a module of the scripts, loads."""
    _, model = world

    def use(module: Any) -> None:
        monkeypatch.setattr(module, "load_base", lambda *a, **k: (model, tokenizer))
        monkeypatch.setattr("hilora.base.embed.Embedder", lambda *a, **k: embedder)
        monkeypatch.setattr(module, "Embedder", lambda *a, **k: embedder, raising=False)

    return use
