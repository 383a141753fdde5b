"""Smoke tests: selection's tables run from start to end on tiny files, and are those of the committed numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = "reproduce/selection/selection.py"
CLUSTERS = {"alpha": "words", "beta": "words", "gamma": "numbers", "delta": "numbers"}


def write(path: Path, tiny: Any, count: int, seed: int, tasks: list[str]) -> None:
    rows = [
        {"task": task, "cluster": CLUSTERS[task], "inputs": text, "targets": "x"}
        for task in tasks
        for text in tiny.texts(task, count, seed)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_table_is_made(
    tmp_path: Path, tiny: Any, embedder: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts.load(SCRIPT)
    monkeypatch.setattr(module, "Embedder", lambda name: embedder)
    monkeypatch.setattr(module, "SIZES", (5, 10))
    monkeypatch.setattr(module, "SAMPLES", 10)
    monkeypatch.setattr(module, "VERDICTS", tmp_path / "verdicts.json")
    (tmp_path / "verdicts.json").write_text(json.dumps(dict.fromkeys(CLUSTERS, "kept")))
    write(tmp_path / "ramole48" / "samples.jsonl", tiny, 10, 0, list(CLUSTERS))
    write(tmp_path / "ramole48" / "test_half.jsonl", tiny, 6, 1, list(CLUSTERS))
    for task in CLUSTERS:
        write(tmp_path / "flan_mini" / "train" / f"{task}.jsonl", tiny, 12, 2, [task])
        write(tmp_path / "flan_mini" / "val" / f"{task}.jsonl", tiny, 8, 3, [task])
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    made = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    result = json.loads(made["selection.json"])
    for name, prompts in (("ramole48", 24), ("flan_mini", 16)):
        found = result[name]
        assert (found["tasks"], found["prompts"]) == (4, prompts)
        assert list(found["retrieval"]) == ["5", "10"]
        assert found["retrieval"]["10"]["experts"][2] == 1.0  # 5 of 4 adapters
        assert all(0 <= share <= 1 for share in found["top"])
        assert set(found["novelty"]) == {"own", "family", "cluster"}
        assert all(0 <= value <= 1 for each in found["novelty"].values() for value in each["auroc"].values())
    assert not any(text in made["selection.json"] for task in CLUSTERS for text in tiny.texts(task, 10))
    assert "nan" not in made["selection.md"]
    (tmp_path / "out" / "selection.md").unlink()
    scripts.run(scripts.load(SCRIPT), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "selection.md").read_text() == made["selection.md"]


def test_sets_cover_what_is_exchangeable_as_often_as_promised(scripts: Any) -> None:
    module = scripts.load(SCRIPT)
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(2000) % 10
    scores = torch.randn(2000, 10, generator=generator)
    scores[torch.arange(2000), owner] += 1.5
    for alpha in (0.2, 0.05):
        found = module.conformal(scores, owner, [1.0] * 100, alpha)
        assert found["resplits"][0] == pytest.approx(1 - alpha, abs=0.005)
        assert found["resplits"][1] >= found["resplits"][0]


def test_the_share_at_a_mean_size_lies_on_the_line_between_whole_sizes(scripts: Any) -> None:
    scripts.load(SCRIPT)
    tables = scripts.load("reproduce/selection/selection_tables.py")
    assert np.isclose(tables.at_size([0.8, 0.9, 0.95], 1.5), 0.85)
    assert tables.at_size([0.8, 0.9, 0.95], 7) == 0.95


@pytest.mark.parametrize("name", ["selection", "unsampled"])
def test_the_committed_tables_are_those_of_the_committed_numbers(name: str, tmp_path: Path, scripts: Any) -> None:
    home = ROOT / "reproduce" / "selection"
    (tmp_path / f"{name}.json").write_text((home / f"{name}.json").read_text())
    scripts.run(scripts.load(f"reproduce/selection/{name}.py"), "--out", tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == (home / f"{name}.md").read_text()


def test_what_adapters_without_samples_cost_is_measured(
    tmp_path: Path, tiny: Any, embedder: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts.load("reproduce/selection/unsampled.py")
    monkeypatch.setattr(module, "Embedder", lambda name: embedder)
    monkeypatch.setattr(module, "CARDS", tmp_path / "cards.json")
    cards = {
        t: {"description": f"About {t}. {tiny.texts(t, 1)[0]}.", "prompts": tiny.texts(t, 5, 9)} for t in CLUSTERS
    }
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    write(tmp_path / "samples.jsonl", tiny, 20, 0, list(CLUSTERS))
    write(tmp_path / "test_half.jsonl", tiny, 6, 1, list(CLUSTERS))
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "unsampled.json").read_text())
    assert list(result["everyone"]) == list(result["alone"]) == list(module.WAYS)
    for way in module.WAYS:
        for first, third, *_ in (*result["everyone"][way].values(), *result["alone"][way].values()):
            assert 0 <= first <= third <= 1
    assert result["everyone"]["20 samples"]["hilora-plus"][0] == result["alone"]["20 samples"]["hilora-plus"][0]
    assert "nan" not in (tmp_path / "out" / "unsampled.md").read_text()


def test_adapters_write_texts_by_which_they_are_known(
    tmp_path: Path, shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any, scripts: Any, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    module = scripts.load("reproduce/selection/generated.py")
    monkeypatch.setattr(module, "Embedder", lambda name: embedder)
    monkeypatch.setattr(module, "load_base", lambda name: (model, tokenizer))
    monkeypatch.setattr(module, "POOL", pool.path)
    monkeypatch.setattr(module, "TEXTS", 5)
    monkeypatch.setattr(module, "TOKENS", 6)
    for task in CLUSTERS:
        write(tmp_path / "flan_mini" / "val" / f"{task}.jsonl", tiny, 8, 3, [task])
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "generated.json").read_text())
    assert list(result["everyone"]) == list(module.WAYS) == list(result["alone"])
    assert result["everyone"]["20 samples"]["cosine"] == [1.0, 1.0]
    assert result["setup"]["prompts"] == 16
    assert "nan" not in (tmp_path / "out" / "generated.md").read_text()


def test_views_of_a_prompt_are_compared(
    tmp_path: Path, tiny: Any, embedder: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "reproduce/selection/views.py"
    module = scripts.load(script)
    monkeypatch.setattr(module, "Embedder", lambda *a, **k: embedder)
    write(tmp_path / "samples.jsonl", tiny, 10, 0, list(CLUSTERS))
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    made = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    found = json.loads(made["views.json"])["sets"]
    assert [tuple(of["witnesses"]) for of in found] == list(module.SETS)
    assert all(of["tops"] == sorted(of["tops"]) and of["log_loss"] >= 0 for of in found)
    assert not any(text in made["views.json"] for task in CLUSTERS for text in tiny.texts(task, 10))
    scripts.run(scripts.load(script), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "views.md").read_text() == made["views.md"]
