"""What a manifest may say beyond what routing reads.

Format 2 is open: a field that this version does not know, of the pool, its base, its embedder or an adapter, is
kept as it is through every change. What must not be overlooked (that adapters belong to tenants, say) is announced
by a word under "needs": whoever does not know the word refuses the pool (`store.ABILITIES`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from hilora.errors import InputError
from hilora.pool.view import Entry

OPTIONAL: Mapping[str, str | dict[str, Any]] = {
    "tenant": "",  # whose own it is; "" for everybody's
    "called": "",  # by those who see it, where names are unique for each tenant; "" for its name
    "state": "",  # in its owner's words; whether it may be routed to is said by `enabled` alone
    "note": "",  # for people
    "release": "",  # of its content, in its owner's words
    "template": "",  # id of the prompt template that it was trained with; "" for the base's
    "upload": "",  # to a server, by which it came
    "statistics": {},  # numbers measured on its weights and samples
}
"""An adapter's optional fields, each with what it is where it is not there. Routing asks for `tenant` alone."""
OF_CONTENT = ("release", "template", "upload", "statistics")
"""Those that another content under the same name does not inherit."""
OF_SAMPLES = ("statistics",)
"""Those that do not outlive the samples."""
HEAD = frozenset({"format", "version", "needs", "embedder", "ridge", "calibration", "tuned_on", "epoch", "adapters"})
"""A pool's fields that this version reads."""

_FIELDS = frozenset(each.name for each in fields(Entry)) - {"extra"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str) -> None:
    """Refuse what no adapter may be called.

    Raises:
        InputError: says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no adapter name: use letters, digits, '.', '_' and '-', at most 128.")


def known(raw: Any, names: Collection[str]) -> dict[str, Any]:
    """Those fields of an object whose names are known.

    Raises:
        TypeError: it is no object.
    """
    if not isinstance(raw, dict):
        raise TypeError(f"expected an object, got {raw!r:.60}")
    return {key: value for key, value in raw.items() if key in names}


def read_entry(raw: Any) -> Entry:
    """An adapter from its line of the manifest.

    Raises:
        TypeError, ValueError: a field is missing, or an optional one is not of its type.
    """
    if isinstance(raw, dict) and raw.keys() <= _FIELDS:  # nearly all of them, of very many
        return Entry(**raw)
    found = known(raw, _FIELDS)
    for key, default in OPTIONAL.items():
        if not isinstance(raw.get(key, default), type(default)):
            raise ValueError(
                f"{key} of {found.get('name')!r}: expected {type(default).__name__}, got {raw[key]!r:.40}"
            )
    return Entry(**found, extra={key: value for key, value in raw.items() if key not in _FIELDS})


def optional(entry: Entry) -> dict[str, Any]:
    """All optional fields of an adapter, by their defaults where it has none."""
    return {**OPTIONAL, **entry.extra}


def inherit(entry: Entry, old: Entry | None, but: Collection[str] = OF_CONTENT) -> Entry:
    """An adapter with the optional fields of the one whose place it takes, all `but` some."""
    kept = {} if old is None else {key: value for key, value in old.extra.items() if key not in but}
    return replace(entry, extra=kept)
