"""What a route may count along: a pool's own adapters, or adapters made from them.

`Canonical` gives each adapter in canonical form, `Merged` one new adapter for each set that was merged. Both are
views: nothing is written to the pool. `Stored` is the pool itself. All keep factors for the next batch in a `Memory`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hilora.merge.average import Merge
from hilora.pool.canonical import canonical_factors
from hilora.pool.memory import Memory
from hilora.pool.view import PoolView
from hilora.types import Factors


@runtime_checkable
class Part(Protocol):
    """What a route needs to know of an adapter: a pool's entry, or `Derived`."""

    @property
    def name(self) -> str:
        """As shown to people."""
        ...

    @property
    def hash(self) -> str:
        """Tells contents apart."""
        ...

    @property
    def rank(self) -> int:
        """Largest rank over the sites."""
        ...


@runtime_checkable
class Source(Protocol):
    """Adapters by position, and their factors by content."""

    @property
    def entries(self) -> Sequence[Part]:
        """The adapters, in the order that routes count along."""
        ...

    def factors(self, content: str) -> Factors:
        """Factors of the adapter with that hash."""
        ...


@dataclass(frozen=True)
class Derived:
    """An adapter that was made from others."""

    name: str
    hash: str
    rank: int


class Stored:
    """A pool's adapters as they are."""

    def __init__(self, pool: PoolView, memory: Memory) -> None:
        self.pool, self.memory, self.entries = pool, memory, pool.entries

    def factors(self, content: str) -> Factors:
        """Factors by hash, memory-mapped."""
        return self.memory.get(content, lambda: self.pool.factors(content))


class Canonical:
    """A pool's adapters in canonical form (`hilora.pool.canonical`)."""

    def __init__(self, pool: PoolView, memory: Memory) -> None:
        self.pool, self.memory = pool, memory
        self.entries = tuple(Derived(e.name, f"canonical {e.hash}", e.rank) for e in pool.entries)

    def factors(self, content: str) -> Factors:
        """Canonical factors by derived hash."""
        return self.memory.get(content, lambda: canonical_factors(self.pool.factors(content.split()[1])))


class Merged:
    """Adapters merged from a pool's, one for each set of them that `position` was asked for."""

    def __init__(self, pool: PoolView, merge: Merge, memory: Memory) -> None:
        self.pool, self.merge, self.memory = pool, merge, memory
        self.entries: tuple[Derived, ...] = ()
        self._position: dict[tuple[int, ...], int] = {}
        self._members: dict[str, tuple[int, ...]] = {}

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
            self.entries = (*self.entries, Derived(name, digest, rank))
        return self._position[members]

    def factors(self, content: str) -> Factors:
        """Merged factors by hash; merged again where they were given up for others."""
        hashes = [self.pool.entries[i].hash for i in self._members[content]]
        return self.memory.get(content, lambda: self.merge([self.pool.factors(own) for own in hashes], hashes))
