"""Smoke tests: the experiments' scripts run from start to table on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilora.evaluate.metrics import exact_match, metric_for, most_frequent, normalise, rouge_l

ROOT = Path(__file__).parent.parent


def test_the_main_job_is_evaluated_resumed_and_tabled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: Any,
    capsys: pytest.CaptureFixture[str],
    shared_pool: Any,
    tiny: Any,
    tokenizer: Any,
    embedder: Any,
) -> None:
    model, pool = shared_pool("llama")
    (tmp_path / "val").mkdir()
    texts = {task: tiny.texts(task, 6, seed=5) for task in tiny.tasks}
    for task in tiny.tasks:
        rows = [{"inputs": text, "targets": "x"} for text in texts[task]]
        (tmp_path / "val" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate, out = scripts.load("reproduce/main_job/evaluate.py"), tmp_path / "rows.jsonl"
    monkeypatch.setattr(evaluate, "load_base", lambda *a, **k: (model, tokenizer))
    monkeypatch.setattr(evaluate, "Embedder", lambda: embedder)
    options = ["--data", tmp_path, "--pool", pool.path, "--out", out, "--max-new-tokens", 2, "--batch-size", 5]
    scripts.run(evaluate, *options, "--methods", "base", "hilora")
    written = out.read_text()
    assert not any(text in written for part in texts.values() for text in part)
    scripts.run(evaluate, *options, "--methods", "base", "hilora")
    assert out.read_text() == written
    scripts.run(evaluate, *options, "--methods", "oracle", "hilora-roc")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({(row["method"], row["id"]) for row in rows if "id" in row}) == 5 * 4 * 3
    capsys.readouterr()
    table = scripts.load("reproduce/main_job/table.py")
    scripts.run(table, "--rows", out)
    printed = capsys.readouterr().out
    assert "| alpha | 3 | exact match |" in printed
    assert "| oracle | " in printed
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with pytest.raises(SystemExit, match="lacks 1 rows"):
        scripts.run(table, "--rows", out)


def test_the_benchmarks_prompts_are_the_same_every_time(scripts: Any) -> None:
    benchmark = scripts.load("benchmarks/main_job.py")
    assert benchmark.prompts(8, 10) == benchmark.prompts(8, 10)
    assert len(set(benchmark.prompts(8, 10))) == 8


def test_exact_match_compares_after_the_stated_normalisation() -> None:
    assert normalise("  \u201cYes\u201d. \n") == "\u201cyes\u201d"
    assert exact_match("  Positive.", "positive") == 1.0
    assert exact_match("not positive", "positive") == 0.0
    assert exact_match("New   York", "new york") == 1.0


def test_rouge_l_is_one_for_the_reference_and_zero_for_other_words() -> None:
    assert rouge_l("a dog runs in the park", "a dog runs in the park") == 1.0
    assert rouge_l("nothing alike", "a dog runs") == 0.0
    # 3 of 4 words in order: precision 3/4, recall 3/3
    assert rouge_l("a dog quickly runs", "a dog runs") == pytest.approx(2 * 0.75 / 1.75)


def test_metrics_by_task_and_the_constant_answer() -> None:
    assert metric_for("common_gen") == "rouge_l"
    assert metric_for("sst2") == "exact_match"
    assert most_frequent(["a", "b", "b", "c"]) == "b"
