"""Tables of a server's state (`state`), their rows, and what every connection to them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from hilora.errors import MismatchError

FORMAT = 1
"""Of the tables. A state of a later one is refused."""

meta = sql.MetaData()
tokens = sql.Table(
    "tokens",
    meta,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("digest", sql.String, unique=True, nullable=False),
    sql.Column("tenant", sql.String, nullable=False),
    sql.Column("scopes", sql.String, nullable=False),
    sql.Column("note", sql.String, nullable=False),
    sql.Column("created", sql.String, nullable=False),
    sql.Column("revoked", sql.String),
)
uploads = sql.Table(
    "uploads",
    meta,
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
audit = sql.Table(
    "audit",
    meta,
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
    state: str  # one of `state.STATES`
    reason: str  # why it was refused
    bytes: int
    created: str
    changed: str


def check_format(number: int) -> None:
    """Refuse a state of a later format.

    Raises:
        MismatchError: it is.
    """
    if number > FORMAT:
        raise MismatchError(
            f"The server's state beside the pool was written by a newer hilora (format {number}, this version "
            f"reads {FORMAT}). Run: pip install --upgrade hilora"
        )


def prepare(connection: Any, _: object) -> None:
    """Make a connection what all of them are.

    Raises:
        MismatchError: the state was written by a newer version; nothing of it has been changed.
    """
    cursor = connection.cursor()
    try:
        ((number,),) = cursor.execute("PRAGMA user_version").fetchall()
        check_format(number)
        for line in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {line}")
    finally:
        cursor.close()
