"""Which adapters a caller sees, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.pool.view import Entry, PoolView
from hilora.serve.asked import Caller
from hilora.serve.faults import MissingError
from hilora.types import Choice


def visible(view: PoolView, caller: Caller) -> list[Entry]:
    """The adapters that a caller sees, under the names that he knows them by."""
    return [entry for entry in view.entries if entry.extra.get("tenant", "") in ("", caller.tenant)]


def outer(view: PoolView, caller: Caller, choice: Choice) -> Choice:
    """A choice, under the name that the caller knows."""
    return replace(choice)


def find(view: PoolView, caller: Caller, name: str) -> int:
    """Position of an adapter that a caller names, or whose hash he gives.

    Raises:
        MissingError: he sees none.
    """
    for place, entry in enumerate(view.entries):
        if entry in visible(view, caller) and name in (entry.name, entry.hash):
            return place
    raise MissingError(
        f"There is no model {name!r}. GET /v1/models lists those that there are.", "model_not_found", "model"
    )


def mask(view: PoolView, caller: Caller, allow: Sequence[str] | None) -> Bool[Tensor, " adapter"]:
    """Which adapters a caller's prompts may use."""
    seen = set(visible(view, caller))
    out = torch.tensor([entry in seen for entry in view.entries], dtype=torch.bool)
    if allow is not None:
        listed = torch.zeros_like(out)
        listed[[find(view, caller, name) for name in allow]] = True
        out &= listed
    return out
