"""What is routed on: measured from start to end on tiny files; the library does what the committed rows choose."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from hilora.base.asked import HEAD, TAIL
from hilora.base.turns import SHORT

HOME = Path(__file__).parents[2] / "reproduce" / "selection"
SCRIPT, TABLES = "reproduce/selection/turns.py", "reproduce/selection/turns_tables.py"
TASKS = ("alpha", "beta", "gamma", "delta")


def test_ways_to_read_and_turns_to_route_on_are_measured(
    tmp_path: Path, shared_pool: Any, tiny: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reads(tiny.embedder):  # type: ignore[misc, name-defined]
        room = 28
        spans = staticmethod(lambda text: [(i, i + 1) for i in range(len(text))])

    module = scripts.load(SCRIPT)
    monkeypatch.setattr(module, "Embedder", lambda name: Reads())
    monkeypatch.setattr(module, "POOL", shared_pool("llama")[1].path)
    monkeypatch.setattr(module, "PROSE", TASKS)
    monkeypatch.setattr(module, "WORDS", 20)
    folder = tmp_path / "flan_mini" / "val"
    folder.mkdir(parents=True)
    for task in TASKS:
        rows = [{"task": task, "cluster": "c", "inputs": text, "targets": "so"} for text in tiny.texts(task, 12)]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "turns.json").read_text())
    cases = {key.split("/")[1] for key in result["long"]}
    assert cases == {"as it is", "prose before", "prose behind", "prompts before"}
    for row in result["long"].values():
        assert all(re.fullmatch(r"[0-3]\+ [0-3]\+ [0-3]\+", marks) for marks in row.values())  # of one cluster
    assert len(result["chats"]) == 2 * 4 * 24
    for row in result["chats"].values():
        assert len(row["sizes"]) == len(row["last"])
    alone = [row["last"][0] for key, row in result["chats"].items() if key.split("/")[1] == "another task"]
    assert set(alone) == {"0+ 0+ 0+"}
    page = (tmp_path / "out" / "turns.md").read_text()
    assert "nan" not in page
    assert not any(text in json.dumps(result) for task in TASKS for text in tiny.texts(task, 12))
    (tmp_path / "out" / "turns.md").unlink()
    scripts.run(scripts.load(SCRIPT), "--out", tmp_path / "out")
    assert (tmp_path / "out" / "turns.md").read_text() == page


def test_the_committed_table_is_that_of_the_committed_rows(tmp_path: Path, scripts: Any) -> None:
    (tmp_path / "turns.json").write_text((HOME / "turns.json").read_text())
    scripts.run(scripts.load(SCRIPT), "--out", tmp_path)
    assert (tmp_path / "turns.md").read_text() == (HOME / "turns.md").read_text()


def test_the_library_does_what_was_chosen(scripts: Any) -> None:
    scripts.load(SCRIPT)
    tables = scripts.load(TABLES)
    rows = json.loads((HOME / "turns.json").read_text())
    assert tables.choose_limit(rows["chats"]) == SHORT
    assert tables.KEPT[tables.choose_kept(rows["long"])] == (HEAD, TAIL)


def test_windows_hold_the_whole_text_and_none_is_too_long(scripts: Any) -> None:
    module = scripts.load(SCRIPT)
    for length in (7, 8, 9, 31, 32, 33):
        text = "".join(chr(97 + i % 26) for i in range(length))
        parts = module.windows(text, [(i, i + 1) for i in range(length)], 8)
        assert "".join(parts) == text
        assert len(parts) == math.ceil(length / 8)
        assert max(map(len, parts)) <= 8
