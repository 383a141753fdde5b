"""Which waiting requests may join a step: all adapters of its requests have to lie in vLLM's slots at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Set

PATIENCE = 2.0
"""Seconds after which a request that found no room is let in before all later ones that use adapters."""


class Admission:
    """Lets requests in, and sees to it that none waits for ever while others pass it.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, float] = {}

    def may(self, request: str, mine: Set[str], running: Set[str], slots: int) -> bool:
        """Whether a request may join those that run.

        Args:
            request: its id.
            mine: the adapters that it uses.
            running: those of all requests that run.
            slots: as many adapters lie ready at once.
        """
        if not mine:
            return True
        now, fits = self._clock(), len(mine | running) <= slots
        first = next(iter(self._held), request)
        if first != request and now - self._held[first] > PATIENCE:
            fits = False
        if fits:
            self._held.pop(request, None)
        else:
            self._held.setdefault(request, now)
        return fits

    def forget(self, known: Callable[[str], bool]) -> None:
        """Forget who has waited longest, as long as that one is not there any more."""
        while self._held and not known(first := next(iter(self._held))):
            del self._held[first]
