"""Laws of reading by the line: packed or plain, the text is the same; what is no whole archive is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hilora.errors import InputError
from hilora.evaluate.routing import read_samples as read_by_task
from hilora.evaluate.rows import load_rows
from hilora.jsonl import numbered_lines, plain_path, read_lines, read_text
from hilora.pool.source import read_samples
from hilora.train.data import read_lines as read_training

TEXTS = ("", '{"a": 1}\n\n{"b": "ü\u2028"}', '{"a": 1}\r\n{"b": 2}\r\n', "not JSON")


def packed(path: Path, text: str) -> Path:
    path = path.with_name(f"{path.name}.gz")
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_a_packed_file_reads_as_the_plain_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode())
    archive = packed(path, text)
    assert plain_path(archive) == plain_path(path) == path
    assert read_text(archive) == read_text(path)
    assert numbered_lines(archive) == numbered_lines(path)


def test_the_lines_of_a_packed_file_are_those_of_the_plain_one(tmp_path: Path) -> None:
    lines = [{"a": n, "b": "\u2028"} for n in range(3)]
    text = "\ufeff" + "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    (tmp_path / "rows.jsonl").write_text(text)
    assert read_lines(tmp_path / "rows.jsonl") == read_lines(packed(tmp_path / "rows.jsonl", text)) == lines


def test_packed_data_have_the_tasks_and_rows_of_plain_data(tmp_path: Path) -> None:
    text = '{"inputs": "a", "targets": "b"}\n'
    (tmp_path / "copa.jsonl").write_text(text)
    assert load_rows(packed(tmp_path / "copa.jsonl", text)) == load_rows(tmp_path / "copa.jsonl")


def test_all_data_are_read_by_the_same_lines(tmp_path: Path) -> None:
    rows = [{"task": "t", "inputs": f"{n}\u2028", "targets": f"{n}\x85"} for n in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    texts = [row["inputs"] for row in rows]
    for text in ("\n".join(lines), "\ufeff" + "\r\n".join(lines), "[\n" + ",\n\n".join(lines) + "\n]"):
        (tmp_path / "rows.jsonl").write_bytes(text.encode())
        assert read_samples(tmp_path / "rows.jsonl") == texts
        assert read_training(tmp_path / "rows.jsonl") == [{k: row[k] for k in ("inputs", "targets")} for row in rows]
        assert [row.targets for row in load_rows(tmp_path / "rows.jsonl")] == [row["targets"] for row in rows]
        assert read_by_task(tmp_path / "rows.jsonl") == {"t": texts}
    for bad in ('{"inputs": 1', "[1"):
        (tmp_path / "rows.jsonl").write_text(f"{lines[0]}\n\n{bad}\n")
        for read in (read_samples, read_training, load_rows, read_by_task, read_lines):
            with pytest.raises(InputError, match=r"rows.jsonl, line 3"):
                read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("damage", ["cut", "changed", "plain", "empty"])
def test_a_damaged_archive_is_refused_with_a_remedy(damage: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "rows.jsonl", '{"a": 1}\n' * 99)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes(255 - byte for byte in whole[middle:])
    path.write_bytes({"cut": whole[:middle], "changed": changed, "plain": b'{"a": 1}\n', "empty": b""}[damage])
    for read in (read_text, read_lines, numbered_lines):
        with pytest.raises(InputError, match=r"Cannot read .*rows\.jsonl\.gz: .*Get the file again"):
            read(path)
