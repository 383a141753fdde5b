"""Shapes of adapters: which of them may have slots that never change."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from hilora.engine.slots import Shape, shape_of
from hilora.errors import ModelError
from hilora.pool.view import Source
from hilora.types import Factors

SHAPES = 4
"""So many shapes have slots: those that most of a pool's adapters have."""
LOOKED = 64
"""Adapters that are looked at to find those."""


class Shapes:
    """Shapes of adapters, by content hash.

    Args:
        load: gives an adapter's factors, anywhere.
    """

    def __init__(self, load: Callable[[str, Source], Factors]) -> None:
        self.load, self.known = load, dict[str, Shape]()
        self._lock = threading.Lock()

    def of(self, content: str, source: Source) -> Shape:
        """An adapter's shape; read once."""
        with self._lock:
            if content not in self.known:
                self.known[content] = shape_of(self.load(content, source))
            return self.known[content]

    def most(self, source: Source) -> dict[Shape, str]:
        """The shapes that most adapters have, each with the content of one.

        Raises:
            ModelError: there is no adapter.
        """
        found: dict[Shape, str] = {}
        counts: Counter[Shape] = Counter()
        for entry in source.entries[:LOOKED]:
            shape = self.of(entry.hash, source)
            counts[shape] += 1
            found.setdefault(shape, entry.hash)
        if not counts:
            raise ModelError(
                "Nothing can be compiled where there are no adapters yet: the pool is empty, or the method makes its "
                "own of it for each call. Add adapters, choose another method, or leave compile out."
            )
        return {shape: found[shape] for shape, _ in counts.most_common(SHAPES)}
