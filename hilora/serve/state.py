"""What a server keeps beside a pool: tokens, uploads, and who did what. Which adapters there are the pool alone says.

One SQLite file in the pool's folder; any number of processes may use it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.pool import NullPool

from hilora.errors import InputError, PoolError
from hilora.pool import store
from hilora.pool.manifest import check_name
from hilora.serve import state_tables as tables
from hilora.serve.asked import SCOPES
from hilora.serve.faults import is_full
from hilora.serve.state_tables import Token, Upload

FOLDER, FILE = "serve", "state.sqlite"
OPEN = ("received", "checking")
STATES = (*OPEN, "live", "refused", "removed")
"""Of an upload; from "received" it can only go on. While it is open nothing is known of its fate."""
PREFIX = "hlr_"
"""How tokens begin, so that people and scanners know them."""
ARRIVAL = sql.text("rowid")
"""The order in which rows came, whatever the clock said."""


class State:
    """A server's memory beside a pool.

    Args:
        pool: the pool's folder.

    Raises:
        PoolError: it cannot be written there.
    """

    def __init__(self, pool: Path) -> None:
        self.folder = pool / FOLDER
        path = self.folder / FILE
        self._late: list[Any] = []  # changes that a full disk has not taken yet
        self._moved: dict[str, dict[str, Any]] = {}  # what they make of uploads
        self._lock = threading.RLock()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            self._engine = sql.create_engine(f"sqlite:///{path}", poolclass=NullPool)
            sql.event.listen(self._engine, "connect", tables.prepare)
            tables.meta.create_all(self._engine)
            with self._engine.begin() as connection:
                if not connection.execute(sql.text("PRAGMA user_version")).scalar_one():
                    connection.execute(sql.text(f"PRAGMA user_version={tables.FORMAT}"))
        except (OSError, sql.exc.SQLAlchemyError) as error:
            why = store.FULL if is_full(error) else f"{getattr(error, 'orig', error)}."
            raise PoolError(
                f"A server keeps its state in {path}, which cannot be written: {why} "
                "Where adapters are not to be uploaded, --no-uploads serves the pool without."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile reading needs no space on the disk: files that SQLite has beside its own stay there."""
        with self._engine.connect() as connection:
            connection.execute(sql.text("PRAGMA user_version"))
            connection.rollback()
            try:
                yield
            finally:
                with suppress(PoolError):
                    self._write(sql.text("SELECT 1"))  # and what is late

    def add_token(self, tenant: str, scopes: Iterable[str], note: str = "") -> tuple[str, Token]:
        """A new token: its secret, which is shown once, and what is kept.

        Args:
            tenant: whose it is; "" for nobody's own.
            scopes: of `asked.SCOPES`.
            note: for people.

        Raises:
            InputError: no such scope, or no name for a tenant.
        """
        wanted = list(dict.fromkeys(scopes))
        unknown = [scope for scope in wanted if scope not in SCOPES]
        if unknown or not wanted:
            got = unknown[0] if unknown else "none"
            raise InputError(f"A token is for some of {', '.join(SCOPES)}; got {got}.")
        if tenant:
            check_name(tenant)
        secret = PREFIX + secrets.token_urlsafe(32)
        token = Token(uuid.uuid4().hex[:12], tenant, frozenset(wanted), note, _now(), None)
        self._write(
            sql.insert(tables.tokens).values(
                id=token.id,
                digest=_digest(secret),
                tenant=tenant,
                scopes=" ".join(wanted),
                note=note,
                created=token.created,
            )
        )
        return secret, token

    def token(self, secret: str) -> Token | None:
        """The token with that secret, if there is one that has not been revoked."""
        found = self._read(
            sql.select(tables.tokens).where(
                tables.tokens.c.digest == _digest(secret), tables.tokens.c.revoked.is_(None)
            )
        )
        return _token(found[0]) if found else None

    def tokens(self) -> list[Token]:
        """All of them, the oldest first."""
        return [_token(row) for row in self._read(sql.select(tables.tokens).order_by(ARRIVAL))]

    def revoke(self, token: str) -> None:
        """Take back a token, by its id.

        Raises:
            InputError: there is none.
        """
        here = sql.update(tables.tokens).where(tables.tokens.c.id == token, tables.tokens.c.revoked.is_(None))
        if not self._write(here.values(revoked=_now())):
            raise InputError(f"There is no token {token!r} to revoke. See: hilora serve token list")

    def receive(self, tenant: str, name: str, size: int) -> Upload:
        """An upload has come."""
        now = _now()
        upload = Upload(uuid.uuid4().hex, tenant, name, "", "received", "", size, now, now)
        self._write(sql.insert(tables.uploads).values(**upload.__dict__))
        return upload

    def move(
        self, upload: str, state: str, *, content: str | None = None, reason: str = "", late: bool = False
    ) -> Upload:
        """An upload comes into a state.

        Args:
            upload: its id.
            state: one of STATES.
            content: its content hash, if that is known now.
            reason: why it was refused.
            late: it has come so far: where the disk is full, that is known here alone until it can be written.
        """
        assert state in STATES
        values: dict[str, Any] = {"state": state, "reason": reason, "changed": _now()}
        values |= {} if content is None else {"hash": content}
        with self._lock:
            self._write(sql.update(tables.uploads).where(tables.uploads.c.id == upload).values(**values), late=late)
            if self._late:
                self._moved[upload] = self._moved.get(upload, {}) | values
        found = self.upload(upload)
        assert found is not None
        return found

    def upload(self, upload: str) -> Upload | None:
        """One upload."""
        found = self._uploads(sql.select(tables.uploads).where(tables.uploads.c.id == upload))
        return found[0] if found else None

    def last(self, tenant: str, name: str) -> Upload | None:
        """A tenant's newest upload of a name."""
        found = sql.select(tables.uploads).where(tables.uploads.c.tenant == tenant, tables.uploads.c.name == name)
        newest = self._uploads(found.order_by(sql.desc(ARRIVAL)).limit(1))
        return newest[0] if newest else None

    def open_uploads(self) -> list[Upload]:
        """Those that are neither live nor refused."""
        found = self._uploads(sql.select(tables.uploads).where(tables.uploads.c.state.in_(OPEN)))
        return [upload for upload in found if upload.state in OPEN]

    def _uploads(self, statement: Any) -> list[Upload]:
        with self._lock:
            return [Upload(**{**row, **self._moved.get(row["id"], {})}) for row in self._read(statement)]

    def note(self, action: str, subject: str, *, tenant: str = "", token: str = "", detail: str = "") -> None:
        """Write down who did what; where the disk is full, once it can be written."""
        said = {"tenant": tenant, "token": token, "action": action, "subject": subject, "detail": detail}
        self._write(sql.insert(tables.audit).values(at=_now(), **said), late=True)

    def audit(self, limit: int = 100) -> list[dict[str, Any]]:
        """What was done, the newest first."""
        return self._read(sql.select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit))

    def _write(self, statement: Any, *, late: bool = False) -> int:
        """Rows that a change touches.

        Raises:
            PoolError: it cannot be written; if it may be late, for another reason than a full disk.
        """
        with self._lock:
            try:
                with self._engine.begin() as connection:
                    for each in self._late:
                        connection.execute(each)
                    count = int(connection.execute(statement).rowcount)
            except sql.exc.OperationalError as error:
                if late and is_full(error):
                    self._late.append(statement)
                    return 1
                why = store.FULL if is_full(error) else f"{error.orig}."
                raise PoolError(f"{self.folder / FILE} cannot be written: {why}") from error
            self._late.clear()
            self._moved.clear()
            return count

    def _read(self, statement: Any) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]


def _digest(secret: str) -> str:
    """What is kept of a secret, which is random and long: no salt is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _token(row: dict[str, Any]) -> Token:
    scopes: Sequence[str] = row["scopes"].split()
    return Token(row["id"], row["tenant"], frozenset(scopes), row["note"], row["created"], row["revoked"])
