"""A disk that is full: clients hear so, nothing is half done, and when there is space again all goes on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from hilora.errors import PoolError
from hilora.pool import Pool, store
from hilora.serve.state import State

PLACES = ("adapters", "samples", "canonical", "pool.json")


def fill(patch: pytest.MonkeyPatch, place: str) -> None:
    """No file below a pool can be written whose path holds a word."""
    write = store.write_whole

    def refuse(path: Path, content: bytes) -> None:
        if place in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    patch.setattr(store, "write_whole", refuse)


def full(state: State, is_full: bool = True) -> None:
    """Let a state grow no more, as on a disk that is full; or again."""
    most = 1 if is_full else 1 << 30
    sql.event.listen(state._engine, "connect", lambda made, _: made.execute(f"PRAGMA max_page_count={most}"))


def check_told(sent: Any) -> None:
    error = sent.json()["error"]
    assert (sent.status_code, error["code"]) == (507, "disk_full")
    assert "space" in error["message"]


@pytest.mark.parametrize("place", PLACES)
def test_an_upload_that_the_disk_does_not_take_says_so_and_is_taken_later(
    bench: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bench.serve()
    before = set(bench.pool.path.rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        fill(patch, place)
        check_told(bench.send("new"))
        assert bench.client.get("/v1/adapters/new").json()["state"] == "refused"
        assert bench.state.open_uploads() == []
        assert bench.left() == []
        assert "new" not in bench.names()
        if place != "pool.json":  # else it had passed its check, and prune takes its files
            assert set(bench.pool.path.rglob("*.safetensors")) == before
    assert bench.send("new").status_code == 201
    assert [entry.name for entry, wrong in Pool.open(bench.pool.path).check() if wrong] == []


def test_a_file_that_others_had_kept_stays_when_the_disk_is_full(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve()
    content = bench.send("new").json()["hash"]
    bench.client.delete("/v1/adapters/new")
    with monkeypatch.context() as patch:
        fill(patch, "samples")
        check_told(bench.send("other", bench.form(7, task="beta")))
    assert (bench.pool.path / "adapters" / f"{content}.safetensors").exists()  # requests that began with it go on


def test_a_body_that_the_disk_does_not_take_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve()
    files = bench.form()

    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hilora.serve.parts.Path.open", refuse)
        check_told(bench.send("new", files))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refuse)
        check_told(bench.send("new", files))
    assert bench.left() == []
    assert bench.is_well()


def test_what_a_full_disk_does_not_take_of_the_state_is_known_and_is_written_later(bench: Any) -> None:
    bench.serve()
    state, other = bench.state, State(bench.pool.path)
    upload = state.receive("", "new", 1)
    full(state)
    for number in range(100):
        state.note("upload", f"{number}" * 100)
    with pytest.raises(PoolError, match="space"):
        state.receive("", "x" * 4096, 1)
    assert len(other.audit(1000)) < 100
    assert state.move(upload.id, "refused", reason="y" * 4096, late=True).state == "refused"
    assert state.open_uploads() == []
    assert state.last("", "new") == state.upload(upload.id)
    assert [each.id for each in other.open_uploads()] == [upload.id]
    check_told(bench.send("new"))
    assert bench.left() == []
    full(state, is_full=False)
    bench.uploads.close()
    assert other.open_uploads() == []
    assert len(other.audit(1000)) >= 100
    assert other.upload(upload.id) == state.upload(upload.id)


def test_a_token_that_a_full_disk_does_not_take_is_refused_in_one_line(bench: Any) -> None:
    state = State(bench.pool.path)
    full(state)

    def fill_it() -> None:
        for _ in range(200):
            state.add_token("acme", ["use"], "x" * 100)

    with pytest.raises(PoolError, match="No space is left"):
        fill_it()
