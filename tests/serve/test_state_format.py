"""A server's state has a format: a later one is refused, and nothing of it is changed."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from hilora.errors import MismatchError
from hilora.serve.state import State
from hilora.serve.state_read import ReadState


@pytest.mark.parametrize("kind", [State, ReadState])
def test_a_state_of_a_newer_version_is_refused_unchanged(kind: type[State], tmp_path: Path) -> None:
    State(tmp_path)
    path = tmp_path / "serve" / "state.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA user_version=2")
        made.execute("PRAGMA journal_mode=DELETE")
        made.commit()
    before = path.read_bytes()
    with pytest.raises(MismatchError, match="pip install --upgrade"):
        kind(tmp_path)
    assert path.read_bytes() == before


def test_a_state_without_a_format_is_read(tmp_path: Path) -> None:
    secret, _ = State(tmp_path).add_token("acme", ["use"])
    with contextlib.closing(sqlite3.connect(tmp_path / "serve" / "state.sqlite")) as made:
        made.execute("PRAGMA user_version=0")
        made.commit()
    assert State(tmp_path).token(secret) is not None


def test_the_newest_upload_is_the_last_that_came_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path)
    for year in (2030, 2001, 2020):
        monkeypatch.setattr("hilora.serve.state._now", lambda year=year: f"{year}-01-01T00:00:00.000000+00:00")
        upload = state.receive("", "new", 1)
        assert state.last("", "new") == upload
