"""How prompts are served, as their callers and whoever counts are told; and by which of the pool's adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hilora.engine.lanes import Lanes
from hilora.planner import Routed
from hilora.pool.view import PoolView
from hilora.serve.asked import BASE, Caller, Why
from hilora.serve.edition import Edition
from hilora.serve.tenants import fingerprint, outer
from hilora.serve.ticket import Ticket
from hilora.types import Choice

PRIVATE = "private"
"""How adapters that are not everybody's are counted."""


def used(view: PoolView, routed: Routed) -> set[str]:
    """Content hashes of the pool's adapters that rows are routed to."""
    if routed.route is None:
        return set()
    places = routed.route.ids[routed.route.weights > 0].unique().tolist()
    told = {routed.source.entries[place].hash.split()[-1] for place in places}  # "canonical <hash>", too
    return {entry.hash for entry in view.entries if entry.hash in told}  # what others were made of has been read


def public_name(view: PoolView, choice: Choice) -> str:
    """An adapter's name if it is everybody's, else one word for all others."""
    entry = view.entries[view.index(choice.name)]
    return PRIVATE if entry.extra.get("tenant") else entry.name


def why_of(
    edition: Edition, lanes: Lanes, routed: Routed, row: int, choices: Any, prompt_tokens: int, ticket: Ticket
) -> Why:
    """How a row is served, as its caller is told."""
    method = lanes.planner.method.name if ticket.ask.model != BASE else BASE
    told = choices, routed.notes[row], prompt_tokens, lanes.planner.epoch
    return told_of(edition.view, ticket.ask.caller, method, *told)


def told_of(
    view: PoolView,
    caller: Caller,
    method: str,
    choices: Sequence[Choice],
    note: str,
    prompt_tokens: int,
    epoch: str,
) -> Why:
    """How a prompt is served, under the names that its caller knows."""
    hashes = tuple(view.entries[view.index(choice.name)].hash for choice in choices)
    shown = tuple(outer(view, caller, choice) for choice in choices)
    return Why(method, shown, hashes, note, prompt_tokens, epoch, fingerprint(view, caller))
