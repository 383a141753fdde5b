"""A server's state as one reads it that writes nothing: tokens are known, uploads are not taken."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.pool import NullPool

from hilora.errors import PoolError
from hilora.serve.state import FILE, FOLDER, State
from hilora.serve.state_tables import check_format


class ReadState(State):
    """The state beside a pool, if there is one; no file is made or changed.

    Args:
        pool: the pool's folder.

    Raises:
        PoolError: there is one that cannot be read. A server that took it for none would let in whoever comes.
    """

    def __init__(self, pool: Path) -> None:
        self.folder = pool.absolute() / FOLDER
        self._late, self._moved, self._lock = [], {}, threading.RLock()
        self._engine = sql.create_engine("sqlite://", creator=lambda: _opened(self.folder / FILE), poolclass=NullPool)
        try:
            if found := self._read(sql.text("PRAGMA user_version")):
                check_format(found[0]["user_version"])
            self.tokens()
        except (OSError, sql.exc.SQLAlchemyError) as error:
            raise PoolError(
                f"A server's tokens are in {self.folder / FILE}, which cannot be read: {error}. "
                "Start the server as somebody who may read it."
            ) from error

    def _read(self, statement: Any) -> list[dict[str, Any]]:
        try:
            (self.folder / FILE).stat()  # what may not be looked at is there
        except FileNotFoundError:
            return []
        return super()._read(statement)

    def _write(self, statement: Any, *, late: bool = False) -> int:
        raise PoolError("This server takes no uploads, so it only reads its state.")


def _opened(path: Path) -> sqlite3.Connection:
    """A connection that makes no files where it may not, though SQLite shares what is being written by files beside.

    Where nobody is writing, and nothing can be made there, the file is read as it is.
    """
    mode = "rw"
    if not all(os.access(each, os.W_OK) for each in (path, path.parent)):
        mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "ro&immutable=1"
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=10, check_same_thread=False)
