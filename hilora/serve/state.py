"""What a server keeps beside a pool: tokens, uploads, and who did what. Which adapters there are the pool alone says.

One SQLite file in the pool's folder; any number of processes may use it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.pool import NullPool

from hilora.errors import InputError, PoolError
from hilora.pool.manifest import check_name
from hilora.serve.asked import SCOPES

FOLDER, FILE = "serve", "state.sqlite"
OPEN = ("received", "checking")
STATES = (*OPEN, "live", "refused", "removed")
"""Of an upload; from "received" it can only go on. While it is open nothing is known of its fate."""
PREFIX = "hlr_"
"""How tokens begin, so that people and scanners know them."""

_meta = sql.MetaData()
_tokens = sql.Table(
    "tokens",
    _meta,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("digest", sql.String, unique=True, nullable=False),
    sql.Column("tenant", sql.String, nullable=False),
    sql.Column("scopes", sql.String, nullable=False),
    sql.Column("note", sql.String, nullable=False),
    sql.Column("created", sql.String, nullable=False),
    sql.Column("revoked", sql.String),
)
_uploads = sql.Table(
    "uploads",
    _meta,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("tenant", sql.String, nullable=False),
    sql.Column("name", sql.String, nullable=False),
    sql.Column("hash", sql.String, nullable=False),
    sql.Column("state", sql.String, nullable=False),
    sql.Column("reason", sql.String, nullable=False),
    sql.Column("bytes", sql.Integer, nullable=False),
    sql.Column("created", sql.String, nullable=False),
    sql.Column("changed", sql.String, nullable=False),
    sql.Index("uploads_by_name", "tenant", "name"),
)
_audit = sql.Table(
    "audit",
    _meta,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("at", sql.String, nullable=False),
    sql.Column("tenant", sql.String, nullable=False),
    sql.Column("token", sql.String, nullable=False),
    sql.Column("action", sql.String, nullable=False),
    sql.Column("subject", sql.String, nullable=False),
    sql.Column("detail", sql.String, nullable=False),
)


@dataclass(frozen=True)
class Token:
    """Who may do what; the secret itself is known to nobody but its owner."""

    id: str
    tenant: str
    scopes: frozenset[str]
    note: str
    created: str
    revoked: str | None


@dataclass(frozen=True)
class Upload:
    """What became of one upload."""

    id: str
    tenant: str
    name: str  # as its tenant calls it
    hash: str  # of its content; "" before it is checked
    state: str  # one of STATES
    reason: str  # why it was refused
    bytes: int
    created: str
    changed: str


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
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            self._engine = sql.create_engine(f"sqlite:///{path}", poolclass=NullPool)
            sql.event.listen(self._engine, "connect", _prepare)
            _meta.create_all(self._engine)
        except (OSError, sql.exc.SQLAlchemyError) as error:
            raise PoolError(
                f"A server keeps its state in {path}, which cannot be written: {error}. "
                "Where adapters are not to be uploaded, --no-uploads serves the pool without."
            ) from error

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
            sql.insert(_tokens).values(
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
            sql.select(_tokens).where(_tokens.c.digest == _digest(secret), _tokens.c.revoked.is_(None))
        )
        return _token(found[0]) if found else None

    def tokens(self) -> list[Token]:
        """All of them, the oldest first."""
        return [_token(row) for row in self._read(sql.select(_tokens).order_by(_tokens.c.created, _tokens.c.id))]

    def revoke(self, token: str) -> None:
        """Take back a token, by its id.

        Raises:
            InputError: there is none.
        """
        here = sql.update(_tokens).where(_tokens.c.id == token, _tokens.c.revoked.is_(None))
        if not self._write(here.values(revoked=_now())):
            raise InputError(f"There is no token {token!r} to revoke. See: hilora serve token list")

    def receive(self, tenant: str, name: str, size: int) -> Upload:
        """An upload has come."""
        now = _now()
        upload = Upload(uuid.uuid4().hex, tenant, name, "", "received", "", size, now, now)
        self._write(sql.insert(_uploads).values(**upload.__dict__))
        return upload

    def move(self, upload: str, state: str, *, content: str | None = None, reason: str = "") -> Upload:
        """An upload comes into a state."""
        assert state in STATES
        values: dict[str, Any] = {"state": state, "reason": reason, "changed": _now()}
        values |= {} if content is None else {"hash": content}
        self._write(sql.update(_uploads).where(_uploads.c.id == upload).values(**values))
        found = self.upload(upload)
        assert found is not None
        return found

    def upload(self, upload: str) -> Upload | None:
        """One upload."""
        found = self._read(sql.select(_uploads).where(_uploads.c.id == upload))
        return Upload(**found[0]) if found else None

    def last(self, tenant: str, name: str) -> Upload | None:
        """A tenant's newest upload of a name."""
        mine = sql.select(_uploads).where(_uploads.c.tenant == tenant, _uploads.c.name == name)
        found = self._read(mine.order_by(_uploads.c.created.desc(), _uploads.c.id).limit(1))
        return Upload(**found[0]) if found else None

    def open_uploads(self) -> list[Upload]:
        """Those that are neither live nor refused."""
        waiting = _uploads.c.state.in_(OPEN)
        return [Upload(**row) for row in self._read(sql.select(_uploads).where(waiting))]

    def note(self, action: str, subject: str, *, tenant: str = "", token: str = "", detail: str = "") -> None:
        """Write down who did what."""
        self._write(
            sql.insert(_audit).values(
                at=_now(), tenant=tenant, token=token, action=action, subject=subject, detail=detail
            )
        )

    def audit(self, limit: int = 100) -> list[dict[str, Any]]:
        """What was done, the newest first."""
        return self._read(sql.select(_audit).order_by(_audit.c.id.desc()).limit(limit))

    def _write(self, statement: Any) -> int:
        with self._engine.begin() as connection:
            return int(connection.execute(statement).rowcount)

    def _read(self, statement: Any) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]


def _prepare(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for line in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {line}")
    cursor.close()


def _digest(secret: str) -> str:
    """What is kept of a secret, which is random and long: no salt is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _token(row: dict[str, Any]) -> Token:
    scopes: Sequence[str] = row["scopes"].split()
    return Token(row["id"], row["tenant"], frozenset(scopes), row["note"], row["created"], row["revoked"])
