"""Smoke tests: RAMoLE's retrieval table and the heatmaps run from start to end on tiny files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilora.evaluate.routing import TOPS  # before the embedder that it names is replaced

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path, tiny: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples and test rows of four tasks in two clusters; every embedder that is loaded is the fake one."""
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **_: embedder)
    for name, count, seed in (("samples", 8, 0), ("test_half", 5, 1)):
        rows = [
            {"task": task, "cluster": cluster, "inputs": text, "targets": "x"}
            for task, cluster in zip(tiny.tasks, ("words", "words", "words", "nli"), strict=True)
            for text in tiny.texts(task, count, seed)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_retrieval_table_has_our_rows_beside_the_papers(
    data: Path, tiny: Any, scripts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "reproduce/ramole/retrieval.py"
    module = scripts.load(script)
    scripts.run(module, "--data", data, "--out", data / "out")
    made = {path.name: path.read_text() for path in (data / "out").iterdir()}
    result = json.loads(made["retrieval.json"])
    assert list(result["methods"]) == list(module.OURS)
    assert all(f"top{k}" in found for k in TOPS for found in result["methods"].values())
    assert result["methods"]["tied"]["top5"] == 1.0
    assert result["repeated"] == sum(
        text in tiny.texts(task, 8) for task in tiny.tasks for text in tiny.texts(task, 5, 1)
    )
    assert not any(text in made["retrieval.json"] for task in tiny.tasks for text in tiny.texts(task, 8))
    assert "| paper: LoraRetriever 100 % | 74.1 | 97.4 | 99.2 | 99.8 | |" in made["retrieval.md"]
    assert "| **own** | 100.0 (100.0 to 100.0) |" in made["retrieval.md"]
    assert made["retrieval.md"] in capsys.readouterr().out
    (data / "out" / "retrieval.md").unlink()
    scripts.run(scripts.load(script), "--out", data / "out")
    assert (data / "out" / "retrieval.md").read_text() == made["retrieval.md"]


def test_the_committed_retrieval_table_is_that_of_the_committed_numbers(tmp_path: Path, scripts: Any) -> None:
    home = ROOT / "reproduce/ramole"
    (tmp_path / "retrieval.json").write_text((home / "retrieval.json").read_text())
    scripts.run(scripts.load("reproduce/ramole/retrieval.py"), "--out", tmp_path)
    assert (tmp_path / "retrieval.md").read_text() == (home / "retrieval.md").read_text()


def test_retrievers_are_trained_once_and_compared(
    data: Path, tiny: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts.load("reproduce/ramole/retriever.py")
    monkeypatch.setattr(module, "WORK", data / "work")
    monkeypatch.setattr(module, "STEPS", 2)
    (data / "start").mkdir()
    start = tiny.bert(data / "start", longest=120)
    scripts.run(module, "--data", data, "--embedder", start, "--out", data / "out")
    result = json.loads((data / "out" / "retriever.json").read_text())
    assert list(result["shares"]) == ["0.0", "0.4", "1.0"]
    assert [len(of["tasks"]) for of in result["shares"].values()] == [0, 2, 4]
    assert result["shares"]["1.0"]["methods"]["cosine"]["unseen"] is None
    page = (data / "out" / "retriever.md").read_text()
    assert "| paper: LoraRetriever 40% | 63.2 / 89.1 / 95.5 / 99.0 |" in page
    monkeypatch.setattr(module, "train_retriever", None)  # what is trained is not trained again
    scripts.run(module, "--data", data, "--embedder", start, "--out", data / "out")
    assert (data / "out" / "retriever.md").read_text() == page


def test_gates_are_trained_once_by_the_recipes_written_down(
    data: Path, shared_pool: Any, tiny: Any, tokenizer: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shared = shared_pool("llama")
    pool = shutil.copytree(shared.path, data / "pool", ignore=shutil.ignore_patterns("trained"))
    train = data / "flan_mini" / "train"
    train.mkdir(parents=True)
    for task in tiny.tasks:
        rows = [{"inputs": text, "targets": "x", "cluster": task[0]} for text in tiny.texts(task, 4, 2)]
        (train / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = scripts.load("reproduce/ramole/train.py")
    monkeypatch.setattr(module, "load_base", lambda *a, **k: (model, tokenizer))
    for name in ("ROUTER", "MOE", "PHATGOOSE"):
        monkeypatch.setattr(module, name, replace(getattr(module, name), steps=2, batch=2, per_task=3))
    monkeypatch.setattr(module, "HUB", replace(module.HUB, evaluations=2, members=2))
    options = ["--data", data, "--pool", pool, "--out", data]
    scripts.run(module, *options)
    assert set(json.loads((data / "times.json").read_text())) == set(module.KINDS)
    made = {path: path.stat().st_mtime_ns for path in (pool / "trained").glob("*.safetensors")}
    assert {path.stem for path in made} == set(module.KINDS)
    scripts.run(module, *options)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    monkeypatch.setattr(module, "MOE", replace(module.MOE, steps=1))
    scripts.run(module, *options, "--only", "smear", "router")
    changed = [path.stem for path, before in made.items() if path.stat().st_mtime_ns != before]
    assert changed == ["smear"]


@pytest.mark.parametrize("source", ["samples", "pool"])
def test_heatmaps_are_drawn_and_drawn_again_from_their_numbers(
    source: str, data: Path, shared_pool: Any, tiny: Any, scripts: Any
) -> None:
    script = "reproduce/figures/heatmap.py"
    given = ["--pool", shared_pool("llama")[1].path] if source == "pool" else ["--samples", data / "samples.jsonl"]
    common = ["--name", "tiny", "--out", data / "out"]
    scripts.run(scripts.load(script), *common, *given, "--data", data / "test_half.jsonl", "--per-task", 4)
    numbers = (data / "out" / "tiny.json").read_text()
    result = json.loads(numbers)
    # cluster by cluster, "nli" before "words"
    assert result["tasks"] == result["adapters"]
    assert [task for task, _ in result["tasks"]] == ["delta", "alpha", "beta", "gamma"]
    for score in ("own", "cosine", "tied"):
        assert [row.index(max(row)) for row in result[score]] == [0, 1, 2, 3]
    assert all(1 <= size <= 4 for size in result["candidates"])
    assert not any(text in numbers for task in tiny.tasks for text in tiny.texts(task, 8))
    pictures = {path: path.read_bytes() for path in (data / "out").glob("*.png")}
    assert len(pictures) == 3
    for path in pictures:
        path.unlink()
    scripts.run(scripts.load(script), *common, "--from", data / "out" / "tiny.json")
    assert pictures == {path: path.read_bytes() for path in (data / "out").glob("*.png")}


def test_an_adapter_without_rows_comes_last(data: Path, scripts: Any) -> None:
    lines = (data / "test_half.jsonl").read_text().splitlines(keepends=True)
    (data / "some.jsonl").write_text("".join(line for line in lines if '"beta"' not in line))
    options = ["--name", "tiny", "--out", data, "--samples", data / "samples.jsonl", "--data", data / "some.jsonl"]
    scripts.run(scripts.load("reproduce/figures/heatmap.py"), *options)
    result = json.loads((data / "tiny.json").read_text())
    assert [name for name, _ in result["adapters"]] == ["delta", "alpha", "gamma", "beta"]
    assert len(result["own"]) == 3
    assert {len(row) for row in result["own"]} == {4}
