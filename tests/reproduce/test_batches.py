"""Answers that depend on the batch."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

from hilora.jsonl import read_lines, read_text


def test_in_fp32_no_answer_depends_on_its_batch_and_the_page_says_so(
    world: Any, use_tiny: Any, tmp_path: Path, scripts: Any
) -> None:
    pool, _ = world
    script = scripts.load("reproduce/hilora/batches.py")
    use_tiny(script)
    few = ("--per-task", 3, "--batch", 4, "--new-tokens", 4, "--dtype", "fp32")
    scripts.run(script, "--data", tmp_path / "data", "--pool", pool.path, "--out", tmp_path, *few)
    packed = tmp_path / "batches.jsonl.gz"
    _, *rows = read_lines(packed)
    assert {row["way"] for row in rows} == set(script.WAYS)
    assert all(len(set(row["answers"])) == 1 for row in rows)
    page = (tmp_path / "batches.md").read_text()
    assert page.count("| 0.0 (0.0 to 0.0) |") >= len(script.WAYS)
    scripts.run(script, "--out", tmp_path)
    assert (tmp_path / "batches.md").read_text() == page
    lines = read_text(packed)
    kept = [line for line in lines.splitlines(keepends=True) if '"way": "hilora"' not in line]
    (tmp_path / "batches.jsonl").write_text("".join(kept))  # as if it had been interrupted
    scripts.run(script, "--data", tmp_path / "data", "--pool", pool.path, "--out", tmp_path, *few)
    assert sorted(read_text(packed).splitlines()) == sorted(lines.splitlines())


def test_arrangements_put_each_prompt_once(scripts: Any) -> None:
    script = scripts.load("reproduce/hilora/batches.py")
    one, other = script.arrangements(10, 4, False)
    assert sorted(chain(*one)) == sorted(chain(*other)) == list(range(10))
    assert one != other
    assert len(set(map(str, script.arrangements(10, 4, True)))) == 1


def test_answers_that_differ_are_counted_by_prompt(scripts: Any) -> None:
    script = scripts.load("reproduce/hilora/batches.py")
    head = {"setup": "x", "dtype": "bf16", "batch": 2, "device": "d"}
    rows = [
        {"way": "base", "id": str(i), "words": i % 2 + 1, "answers": ["a", "b" if i < 1 else "a"]} for i in range(4)
    ]
    assert "| base | 4 | 25.0 (" in script.page([head, *rows])


def test_the_sentence_beside_tables_counts_the_rows(scripts: Any, tmp_path: Path) -> None:
    scripts.load("reproduce/hilora/batches.py")  # which brings its neighbours with it
    script, path = scripts.load("reproduce/rounding.py"), tmp_path / "batches.jsonl"
    assert script.note("there", path) == ""
    made = [(way, i) for way, differ in (("base", 2), ("oracle", 1), ("hilora-plus", 0)) for i in range(differ)]
    lines = [
        {"way": way, "answers": ["a", "b" if (way, i) in made else "a"]} for way in script.SAID for i in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"setup": "x"}, *lines]))
    assert "50 % of the base's, 25 % of the oracle's, 0 % of `hilora-plus`'s differ" in script.note("there", path)
