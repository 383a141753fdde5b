"""Which adapters a caller sees, and under which names.

An adapter is everybody's, or one tenant's own; names are unique among each tenant's own, and among everybody's. In
the pool, where they are unique among all, a tenant's own "x" is "x.<digits made of both>", and its entry says whose
it is and what it is called. Where two that a caller sees go by one name, it means his own; the other is named by its
hash, and so is what is called as only the service itself calls something (`auto`, `base`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.errors import InputError
from hilora.pool.manifest import check_name
from hilora.pool.view import Entry, PoolView
from hilora.serve.asked import AUTO, BASE, Caller
from hilora.serve.faults import MissingError
from hilora.types import Choice

DIGITS = 20
SHORT = 100
"""Characters of a name that are seen in the pool's name for it."""
_RESERVED = re.compile(rf".*\.[0-9a-f]{{{DIGITS}}}")
MOST_HINTED = 2000
"""Names that are looked through for one that is near."""


def tenant_of(entry: Entry) -> str:
    """Whose own an adapter is; "" for everybody's."""
    return str(entry.extra.get("tenant", ""))


def called(entry: Entry) -> str:
    """What those who see an adapter call it."""
    return str(entry.extra.get("called", "") or entry.name)


def inner_name(tenant: str, name: str) -> str:
    """The pool's name for what a tenant calls so.

    Args:
        tenant: whose own it is; "" for everybody's.
        name: as it is called.

    Raises:
        InputError: nothing may be called so.
    """
    check_name(name)
    if name in (AUTO, BASE):
        raise InputError(f"{name!r} is no adapter here: it says how prompts are answered. Choose another name.")
    if re.fullmatch("[0-9a-f]{64}", name):
        raise InputError("The name looks like the hash of a content. Choose another name.")
    if tenant:
        check_name(tenant)
        return f"{name[:SHORT]}.{hashlib.sha256(f'{tenant}/{name}'.encode()).hexdigest()[:DIGITS]}"
    if _RESERVED.fullmatch(name):
        raise InputError(f"Names that end in {DIGITS} hexadecimal digits are kept for others. Choose another name.")
    return name


@dataclass
class _Names:
    """What is whose, and how it is called, in one view of a pool; by tenant."""

    named: dict[str, dict[str, int]] = field(default_factory=dict)
    hashed: dict[str, dict[str, int]] = field(default_factory=dict)
    own: dict[str, list[int]] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)

    def find(self, tenant: str, name: str) -> int | None:
        """Position of what a tenant means by a name or a hash."""
        for table in (self.named, self.hashed):
            for whose in dict.fromkeys((tenant, "")):
                place = table.get(whose, {}).get(name)
                if place is not None:
                    return place
        return None


_known: WeakKeyDictionary[PoolView, tuple[int, _Names]] = WeakKeyDictionary()


def _names(view: PoolView) -> _Names:
    """What was found out of this view, or is now."""
    version, names = _known.get(view, (-1, _Names()))
    if version == view.version:
        return names
    names = _Names()
    for place, entry in enumerate(view.entries):
        tenant, name = tenant_of(entry), called(entry)
        if name not in (AUTO, BASE):
            names.named.setdefault(tenant, {})[name] = place
        names.hashed.setdefault(tenant, {}).setdefault(entry.hash, place)
        names.own.setdefault(tenant, []).append(place)
    _known[view] = view.version, names
    return names


def visible(view: PoolView, caller: Caller) -> list[Entry]:
    """The adapters that a caller sees, under the names that he knows them by, in the pool's order."""
    names = _names(view)
    places = sorted(place for whose in {"", caller.tenant} for place in names.own.get(whose, ()))
    return [_outer_entry(view, names, caller, place) for place in places]


def fingerprint(view: PoolView, caller: Caller) -> str:
    """A short hash of the adapters that a caller sees: it stays while these do, whatever becomes of others."""
    names = _names(view)
    if caller.tenant not in names.seen:
        told = [(e.name, e.hash, e.samples, e.enabled) for e in visible(view, caller)]
        names.seen[caller.tenant] = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
    return names.seen[caller.tenant]


def _outer_entry(view: PoolView, names: _Names, caller: Caller, place: int) -> Entry:
    name = _outer_name(view, names, caller, place)
    entry = view.entries[place]
    return entry if name == entry.name else replace(entry, name=name)


def _outer_name(view: PoolView, names: _Names, caller: Caller, place: int) -> str:
    entry = view.entries[place]
    name = called(entry)
    return name if names.find(caller.tenant, name) == place else entry.hash


def outer(view: PoolView, caller: Caller, choice: Choice) -> Choice:
    """A choice, under the name that the caller knows."""
    return replace(choice, name=_outer_name(view, _names(view), caller, view.index(choice.name)))


def find(view: PoolView, caller: Caller, name: str) -> int:
    """Position of an adapter that a caller names, or whose hash he gives.

    Raises:
        MissingError: he sees none; near names are told of those that he sees.
    """
    names = _names(view)
    place = names.find(caller.tenant, name)
    if place is not None:
        return place
    seen = [*names.named.get("", {}), *(names.named.get(caller.tenant, {}) if caller.tenant else ())]
    near = get_close_matches(name[:128], seen, n=1) if len(seen) <= MOST_HINTED else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise MissingError(
        f"There is no model {name!r:.140}.{hint} GET /v1/models lists those that there are.",
        "model_not_found",
        "model",
    )


def mask(view: PoolView, caller: Caller, allow: Sequence[str] | None) -> Bool[Tensor, " adapter"]:
    """Which adapters a caller's prompts may use.

    Raises:
        MissingError: a name in the list is of none that he sees.
    """
    out = torch.zeros(len(view), dtype=torch.bool)
    if allow is not None:
        out[[find(view, caller, name) for name in allow]] = True
        return out
    names = _names(view)
    for whose in {"", caller.tenant}:
        out[names.own.get(whose, [])] = True
    return out
