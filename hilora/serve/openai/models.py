"""What a caller can name as model."""

from __future__ import annotations

from datetime import UTC, datetime

from hilora.pool.view import Entry
from hilora.serve.asked import AUTO, BASE, Caller, Shelf
from hilora.serve.faults import MissingError
from hilora.serve.openai.replies import Model, ModelList

OWNER = "hilora"


def models_of(shelf: Shelf, caller: Caller) -> ModelList:
    """Everything, the names that are no adapter's first."""
    own = [_named(name, shelf.opened) for name in (AUTO, BASE)]
    return {"object": "list", "data": [*own, *(_adapter(entry) for entry in shelf.visible(caller))]}


def model_of(shelf: Shelf, caller: Caller, name: str) -> Model:
    """One of them, by name or by the hash of its content.

    Raises:
        MissingError: the caller sees none of that name.
    """
    if name in (AUTO, BASE):
        return _named(name, shelf.opened)
    for entry in shelf.visible(caller):
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
