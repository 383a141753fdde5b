"""A pool while it is being changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hilora.errors import UnknownNameError
from hilora.pool.view import Entry


@dataclass
class Draft:
    """What a change works on: the pool itself changes only when the manifest has been written."""

    entries: dict[str, Entry]
    head: dict[str, Any]  # all else that the manifest says, as it is written there

    def __getitem__(self, name: str) -> Entry:
        if name not in self.entries:
            raise UnknownNameError("adapter", name, self.entries)
        return self.entries[name]
