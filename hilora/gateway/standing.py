"""Whether a backend can be asked, and what it has to do now."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

from hilora.gateway.told import DownError
from hilora.serve.journal import LOG

SHORT = 2.0
"""Seconds for which a server may be down without being another one when it is back."""
LOST = 10.0
"""Seconds without a word after which what a server was asked is asked elsewhere."""
FIRST, LAST = 0.25, 8.0
"""Seconds for which nothing is asked of a server that has failed twice in a row, and at most, if it goes on."""


class Standing:
    """How a backend stands.

    Args:
        place: its number.
        running: requests that it is given at once, at most.

    Attributes:
        up: whether it answered when it was last asked how it is.
        checked_for: what it has been found out to be able to do, or not (`checks`); None where that is not known.
        checked_at: when, by `time.monotonic`.
        troubled: set when it should be looked at now.
        live: adapters of the requests that it has now -> how many.
        inside: requests that it has now, from here.
        others: those that it has from elsewhere, as far as it was heard of them.
    """

    def __init__(self, place: int, running: int) -> None:
        self.place, self.running = place, running
        self.up, self.checked_at, self.troubled = False, 0.0, asyncio.Event()
        self.checked_for: Any = None
        self.live, self.inside, self.others = Counter[str](), 0, 0
        self._failures, self._until, self._heard = 0, 0.0, time.monotonic()
        self._down, self._said_down = inf, False
        self._scopes: set[asyncio.Timeout] = set()

    @property
    def is_there(self) -> bool:
        """Whether it is up, and known."""
        return self.up and self.checked_for is not None

    @property
    def is_open(self) -> bool:
        """Whether it is asked anything now."""
        return self.is_there and time.monotonic() >= self._until

    @property
    def busy(self) -> int:
        """Requests that it has, other clients' as well as far as it was heard of them."""
        return self.inside + self.others

    def failed(self) -> None:
        """It did not answer a request: it is looked at now, and left alone for a while from the second time on."""
        if self.up:  # else it has failed several at once
            self._failures += 1
            if self._failures > 1:
                self._until = time.monotonic() + min(LAST, FIRST * 2 ** min(self._failures - 2, 10))
        self._fall()
        self.troubled.set()

    def worked(self) -> None:
        """It has answered a request."""
        self._failures, self._until = 0, 0.0

    def heard(self) -> None:
        """It has said something."""
        self._heard = time.monotonic()

    def take(self, name: str | None) -> None:
        """It has a request more, for an adapter or for none."""
        self.inside += 1
        if name is not None:
            self.live[name] += 1

    def let_go(self, name: str | None) -> None:
        """It has one less."""
        self.inside -= 1
        if name is not None:
            self.live[name] -= 1
            if not self.live[name]:
                del self.live[name]

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """What is done meanwhile ends when the server is lost.

        Raises:
            DownError: it is.
        """
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            raise DownError("nothing has been heard of it for too long") from error

    def rise(self) -> None:
        """It has said that it is well."""
        self.heard()
        if self._said_down:
            LOG.info("backend %d is up", self.place)
        if time.monotonic() - self._down > SHORT:
            self.checked_for = None
        self.up, self._said_down, self._down = True, False, inf

    def fall(self, why: str) -> None:
        """It has not."""
        if not self._said_down:
            LOG.warning("backend %d is down: %s", self.place, why)
            self._said_down = True
        self._fall()
        if time.monotonic() - self._heard > LOST:  # nothing will come any more of what it was asked
            while self._scopes:
                self._scopes.pop().reschedule(0.0)

    def _fall(self) -> None:
        if self.up:
            self.up, self._down = False, time.monotonic()
