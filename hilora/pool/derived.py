"""Adapters that a method makes from a pool's, for routes to count along instead.

`Canonical` gives each adapter in canonical form, `Merged` one new adapter for each set that was merged. Nothing is
written to the pool: factors are kept for the next batch in a `Memory`.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import torch

from hilora.merge.average import Merge
from hilora.pool import reading
from hilora.pool.canonical import canonical_factors
from hilora.pool.memory import Memory
from hilora.pool.reading import DamagedError
from hilora.pool.view import Entry, PoolView, Source
from hilora.types import Factors, Route

_log = logging.getLogger(__name__)


class Canonical(Source):
    """A pool's adapters in canonical form (`pool.canonical`)."""

    def __init__(self, pool: PoolView, memory: Memory | None = None) -> None:
        self.pool, self.memory = pool, Memory() if memory is None else memory
        self.entries = tuple(replace(entry, hash=f"canonical {entry.hash}") for entry in pool.entries)

    def factors(self, content: str) -> Factors:
        """Canonical factors by derived hash."""
        return self.memory.get(content, lambda: self._factors(content.split()[1]))

    def _factors(self, content: str) -> Factors:
        """As they are kept, or worked out now."""
        try:
            kept = reading.read_canonical(self.pool.path, content)
        except DamagedError as error:
            _log.warning("%s is damaged, and was worked out anew.", error.path)
            kept = None
        return canonical_factors(self.pool.factors(content)) if kept is None else kept


class Merged(Source):
    """Adapters merged from a pool's, one for each set of them that `position` was asked for."""

    def __init__(self, merge: Merge, pool: PoolView, memory: Memory | None = None) -> None:
        self.merge, self.pool, self.memory = merge, pool, Memory() if memory is None else memory
        self.entries: tuple[Entry, ...] = ()
        self._position: dict[tuple[int, ...], int] = {}
        self._members: dict[str, tuple[int, ...]] = {}

    def count(self, route: Route) -> Route:
        """Each row's adapters replaced by the one that merges them; its score is their best."""
        ids = torch.zeros(len(route.ids), 1, dtype=torch.long)
        chosen = route.weights > 0
        for row in range(len(ids)):
            members = tuple(sorted(route.ids[row][chosen[row]].tolist()))
            if members:
                ids[row, 0] = self.position(members)
        return Route(ids, route.scores[:, :1], chosen.any(1, keepdim=True).float(), route.leads)

    def position(self, members: tuple[int, ...]) -> int:
        """Position of the adapter that merges these of the pool's (positions, at least one)."""
        if members not in self._position:
            entries = [self.pool.entries[i] for i in members]
            digest = hashlib.sha256(" ".join([repr(self.merge), *(e.hash for e in entries)]).encode()).hexdigest()
            self._members[digest] = members
            factors = self.factors(digest)
            name = "+".join(e.name for e in entries) if len(entries) <= 3 else f"{len(entries)} adapters merged"
            rank = max(down.shape[0] for down, _ in factors.values())
            self._position[members] = len(self.entries)
            self.entries = (*self.entries, replace(entries[0], name=name, hash=digest, rank=rank))
        return self._position[members]

    def factors(self, content: str) -> Factors:
        """Merged factors by hash; merged again where they were given up for others."""
        hashes = [self.pool.entries[i].hash for i in self._members[content]]
        return self.memory.get(content, lambda: self.merge([self.pool.factors(own) for own in hashes], hashes))
