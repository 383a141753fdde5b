"""Laws of a server that takes no uploads: it reads the tokens that there are, and writes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hilora import get_method
from hilora.errors import InputError, PoolError
from hilora.pool.lease import leased
from hilora.serve.run import Settings
from hilora.serve.state import State
from hilora.serve.state_read import ReadState

NOBODY = 65534


def seen(folder: Path) -> dict[str, Any]:
    """All files, with what is in them and when they were changed; folders, too."""
    found = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return {
        str(path): (stat.st_mtime_ns, stat.st_mode, path.read_bytes() if path.is_file() else b"")
        for path, stat in found.items()
    }


@contextmanager
def stranger() -> Iterator[None]:
    """Somebody who may write nothing here; root may write everywhere, so that he is another user for a while."""
    if os.geteuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def folder(bench: Any) -> Iterator[Path]:
    """A pool that whoever comes may read."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    yield Path(shutil.copytree(bench.pool.path, home / "pool"))
    for path in [home, *home.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(home)


def close_down(folder: Path) -> None:
    """Nobody may write there any more, and all may read."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_pool_that_cannot_be_written_is_served_without_uploads_alone(folder: Path) -> None:
    close_down(folder)
    before, method = seen(folder), get_method("hilora")
    with stranger():
        assert not os.access(folder, os.W_OK)
        assert Settings(uploads=False).check(folder, method).tokens() == []
        with leased(folder):
            pass
        with pytest.raises(InputError, match="tokens"):
            Settings(uploads=False, host="0.0.0.0").check(folder, method)
        with pytest.raises(PoolError, match="--no-uploads"):
            Settings().check(folder, method)
    assert seen(folder) == before


def test_tokens_of_a_folder_that_cannot_be_written_are_known(folder: Path) -> None:
    secret, token = State(folder).add_token("one", ["use"])
    close_down(folder)
    before = seen(folder)
    with stranger():
        state = Settings(uploads=False, host="0.0.0.0").check(folder, get_method("hilora"))
        assert state.token(secret) == token
        assert state.token("another") is None
        with pytest.raises(PoolError, match="only reads"):
            state.note("upload", "x")
    assert seen(folder) == before


def test_without_uploads_no_file_is_made_or_changed_where_it_could_be(folder: Path) -> None:
    before = seen(folder)
    assert Settings(uploads=False).check(folder, get_method("hilora")).tokens() == []
    assert seen(folder) == before
    secret, token = State(folder).add_token("one", ["use"])
    before = seen(folder)
    assert ReadState(folder).token(secret) == token
    after = seen(folder)
    assert {name: each[1:] for name, each in after.items()} == {name: each[1:] for name, each in before.items()}


def test_a_token_taken_back_meanwhile_is_unknown(folder: Path) -> None:
    state = State(folder)
    secret, token = state.add_token("one", ["use"])
    reading = ReadState(folder)
    assert reading.token(secret) == token
    state.revoke(token.id)
    assert reading.token(secret) is None
    shutil.rmtree(folder / "serve")
    assert reading.tokens() == []


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0), lambda path: path.write_bytes(b"none" * 4096)])
def test_tokens_that_cannot_be_read_are_not_taken_for_none(folder: Path, spoil: Callable[[Path], Any]) -> None:
    State(folder).add_token("one", ["use"])
    close_down(folder)
    path = folder / "serve" / "state.sqlite"
    path.chmod(0o600)
    spoil(path)
    with stranger(), pytest.raises(PoolError, match="cannot be read"):
        Settings(uploads=False).check(folder, get_method("hilora"))


def test_tokens_in_a_folder_that_may_not_be_looked_into_are_not_taken_for_none(folder: Path) -> None:
    State(folder).add_token("one", ["use"])
    (folder / "serve").chmod(0)
    with stranger(), pytest.raises(PoolError, match="cannot be read"):
        Settings(uploads=False).check(folder, get_method("hilora"))


def test_what_is_being_written_is_read_whole(folder: Path) -> None:
    """Whoever may not write there still reads what lies in SQLite's log beside the file."""
    state = State(folder)
    state.add_token("one", ["use"])
    with sqlite3.connect(folder / "serve" / "state.sqlite") as held:
        held.execute("select * from tokens").fetchall()
        secret, token = state.add_token("two", ["use"])
        assert (folder / "serve" / "state.sqlite-wal").stat().st_size > 0
        close_down(folder)
        with stranger():
            assert ReadState(folder).token(secret) == token
    held.close()
