"""Laws of stored rows: packed they are the same bytes, and an interrupted run's plain file counts first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool
from hilora.errors import InputError
from hilora.jsonl import read_text

TEXT = '{"setup": 1}\n{"a": "ü"}\n' * 50


@pytest.fixture
def stored(scripts: Any) -> Any:
    return scripts.load("reproduce/stored.py")


def test_packing_twice_gives_the_same_bytes(stored: Any, tmp_path: Path) -> None:
    made = []
    for name, time in (("a", 1), ("b", 2_000_000_000)):  # neither name nor time is kept
        path = tmp_path / f"{name}.jsonl"
        path.write_text(TEXT)
        os.utime(path, (time, time))
        made.append(stored.pack(path).read_bytes())
        assert read_text(stored.packed_path(path)) == TEXT
        assert not path.exists()
    assert made[0] == made[1]


def test_rows_that_are_unpacked_and_packed_again_are_the_same_bytes(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(TEXT)
    before = stored.pack(path).read_bytes()
    with stored.unpacked(path) as plain:
        assert plain.read_text() == TEXT
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl.gz"]
    assert stored.packed_path(path).read_bytes() == before


def test_an_interrupted_run_goes_on_from_the_plain_file(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(TEXT)
    stored.pack(path)
    for n in range(2):
        with pytest.raises(KeyboardInterrupt), stored.unpacked(path) as plain:  # noqa: PT012
            with plain.open("a") as file:
                file.write(f"{n}\n")
            raise KeyboardInterrupt
    assert read_text(stored.packed_path(path)) == TEXT
    assert stored.stored(path) == path
    assert stored.runs_in(tmp_path) == stored.runs_in(tmp_path, "a", "b") == [path]
    with stored.unpacked(path):
        pass
    assert stored.runs_in(tmp_path) == [stored.packed_path(path)]
    assert read_text(stored.stored(path)) == TEXT + "0\n1\n"


def test_a_run_without_rows_leaves_nothing(stored: Any, tmp_path: Path) -> None:
    with stored.unpacked(tmp_path / "a.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_of_a_damaged_archive(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(TEXT)
    archive = stored.pack(path)
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(InputError, match="Get the file again"), stored.unpacked(path):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl.gz"]


def test_runs_are_listed_by_name_packed_or_plain(stored: Any, tmp_path: Path) -> None:
    for name in ("b", "a-b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(TEXT)
    plain = stored.runs_in(tmp_path)
    stored.pack(tmp_path / "a.jsonl")
    names = [each.name.removesuffix(".gz") for each in stored.runs_in(tmp_path)]
    assert names == [each.name for each in plain] == ["a-b.jsonl", "a.jsonl", "b.jsonl"]
    assert [each.name for each in stored.runs_in(tmp_path, "b", "none", "a")] == ["b.jsonl", "a.jsonl.gz"]


def test_a_pool_made_of_another_is_there_once_it_is_whole(shared_pool: Any, tmp_path: Path, scripts: Any) -> None:
    _, pool = shared_pool("llama")
    copied, out = scripts.load("reproduce/copied.py").copied, tmp_path / "made"

    def without_one(fails: bool) -> None:
        with copied(pool.path, out) as found:
            found.remove(pool.names[0])
            if fails:
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        without_one(fails=True)
    assert not out.exists()
    without_one(fails=False)
    assert Pool.open(out).names == pool.names[1:]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    with pytest.raises(FileExistsError, match="already"):
        without_one(fails=False)
    assert Pool.open(out).names == pool.names[1:]
