"""What a caller can name as model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from hilora.pool.view import Entry
from hilora.serve.asked import AUTO, BASE, Caller
from hilora.serve.faults import MissingError
from hilora.serve.openai.replies import Model, ModelList

OWNER = "hilora"


@runtime_checkable
class Shelf(Protocol):
    """What knows the adapters, as a `Desk` does."""

    @property
    def opened(self) -> int:
        """When, in seconds since 1970."""
        ...

    def visible(self, caller: Caller) -> Sequence[Entry]:
        """The adapters that a caller may name; see `Desk.visible`."""
        ...


def models_of(desk: Shelf, caller: Caller) -> ModelList:
    """Everything, the names that are no adapter's first."""
    own = [_named(name, desk.opened) for name in (AUTO, BASE)]
    return {"object": "list", "data": [*own, *(_adapter(entry) for entry in desk.visible(caller))]}


def model_of(desk: Shelf, caller: Caller, name: str) -> Model:
    """One of them, by name or by the hash of its content.

    Raises:
        MissingError: the caller sees none of that name.
    """
    if name in (AUTO, BASE):
        return _named(name, desk.opened)
    for entry in desk.visible(caller):
        if name in (entry.name, entry.hash):
            return _adapter(entry)
    raise MissingError(f"There is no model {name!r:.120}. GET /v1/models lists all.", "model_not_found", "model")


def _named(name: str, created: int) -> Model:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def _adapter(entry: Entry) -> Model:
    added = datetime.fromisoformat(entry.added)
    created = int((added if added.tzinfo else added.replace(tzinfo=UTC)).timestamp())
    return {
        "id": entry.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "hilora": {
            "hash": entry.hash,
            "rank": entry.rank,
            "samples": entry.num_samples,
            "enabled": entry.enabled,
        },
    }
