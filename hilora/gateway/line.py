"""Who is next, and where: one line for all backends, in the order of coming.

vLLM has only so many adapters in a batch (max_loras), and passes over requests for others for as long as requests for
those keep coming. So here a backend is given requests for so many adapters at once and no more. Whoever waits for his
adapter's turn may be passed by those that can go at once, but only so often: then all behind him wait, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hilora.gateway.backend import Backend
from hilora.serve.faults import AwayError, BusyError

COMPOSITIONS = 8
"""Adapters at once, where neither the user nor the backend says how many."""
PASSED = 64
"""Requests that may overtake one that waits."""
RETURN = 10.0
"""Seconds for which one that waits already waits for a backend to come back."""
CLEARLY = 2, 4
"""A backend that knows the adapter is clearly busier than another if it has more than twice its requests and four."""
NOBODY = (
    "No vLLM answers the gateway. Come again in a moment; whoever runs it finds in its log, and at /readyz, which "
    "backends are down."
)
NOT_LOADED = (
    "No backend can use the adapters of this prompt. Whoever runs the gateway finds at /readyz, and in its log, "
    "which setting to change."
)


@dataclass(frozen=True)
class Load:
    """A backend as far as it matters for one request.

    Attributes:
        free: whether it may be given the request.
        busy: requests that it has.
        knows: 2 if the adapter is at work there, 1 if it is loaded, 0 else.
        loaded: adapters that it has loaded.
    """

    free: bool
    busy: int
    knows: int
    loaded: int = 0


def pick(loads: Sequence[Load]) -> int | None:
    """The backend that is given a request, by its place; None where it has to wait.

    Of those that may be given it, the one that knows the adapter best, unless it is clearly busier than the least
    busy: has more than twice its requests and four. Among equals the least busy, then the one with fewer adapters.
    """
    free = [place for place, load in enumerate(loads) if load.free]
    if not free:
        return None
    times, more = CLEARLY
    most = times * min(loads[place].busy for place in free) + more
    near = [place for place in free if loads[place].busy <= most]
    return min(near, key=lambda place: (-loads[place].knows, loads[place].busy, loads[place].loaded, place))


@dataclass(eq=False)
class Want:
    """What one request needs.

    Attributes:
        name: its adapter's; None for the base model alone.
        rank: the adapter's.
        avoid: backends that have failed it already.
    """

    name: str | None
    rank: int = 0
    avoid: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Waiting:
    want: Want
    future: asyncio.Future[Backend]
    until: float  # when it gives up, if no backend is there
    passed: int = 0


class Line:
    """Gives requests to backends.

    Args:
        backends: all of them.
        waiting: requests that may wait.
        compositions: adapters of the requests that a backend has at once; None for what it says of itself.

    Attributes:
        held: requests that had to wait because there were too many adapters.
    """

    def __init__(self, backends: Sequence[Backend], waiting: int, compositions: int | None = None) -> None:
        self.backends, self.most, self.compositions = backends, waiting, compositions
        self.held = 0
        self._line: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def place(self, want: Want) -> AsyncIterator[Backend]:
        """A backend, once there is one that may be given the request.

        Raises:
            BusyError: too many wait.
            AwayError: no backend is there, or none can use the adapter.
        """
        backend = await self._found(want)
        try:
            yield backend
        finally:
            backend.let_go(want.name)
            self.look()

    def look(self) -> None:
        """Something has changed: let those go who can."""
        place, now = 0, time.monotonic()
        while place < len(self._line):
            waiting = self._line[place]
            if waiting.future.done():  # he has left
                self._line.pop(place)
                continue
            if (why := self._hopeless(waiting.want)) is None:
                waiting.until = now + RETURN
            elif now >= waiting.until:
                waiting.future.set_exception(why)
                continue
            if (backend := self._free(waiting.want)) is not None:
                self._line.pop(place)
                backend.take(waiting.want.name)
                waiting.future.set_result(backend)
                for before in self._line[:place]:
                    before.passed += 1
            elif waiting.passed >= PASSED:
                return
            else:
                place += 1

    async def _found(self, want: Want) -> Backend:
        why = self._hopeless(want)
        if why is not None and not want.avoid:
            raise why
        if not self._line and why is None and (backend := self._free(want)) is not None:
            backend.take(want.name)
            return backend
        if len(self._line) >= self.most:
            raise BusyError(f"{len(self._line)} requests wait already. Come again.", 1.0, "queue_full")
        self.held += self._lacks_room(want)
        waiting = _Waiting(want, asyncio.get_running_loop().create_future(), time.monotonic() + RETURN)
        self._line.append(waiting)
        self.look()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting in self._line:
                self._line.remove(waiting)
            elif not waiting.future.cancelled() and waiting.future.exception() is None:  # it was his turn just now
                waiting.future.result().let_go(want.name)
                self.look()
            raise

    def _free(self, want: Want) -> Backend | None:
        place = pick([self._load(backend, want) for backend in self.backends])
        return None if place is None else self.backends[place]

    def _load(self, backend: Backend, want: Want) -> Load:
        name = want.name
        free = backend.is_open and backend.takes(name, want.rank) and backend.inside < backend.running
        if free and want.avoid:
            others = [each for each in self._able(want) if each.place not in want.avoid]
            free = not others or backend in others
        free = free and self._has_room(backend, name)
        knows = 0 if name is None else 2 if name in backend.live else int(name in backend.loaded)
        return Load(free, backend.busy, knows, len(backend.loaded))

    def _able(self, want: Want) -> list[Backend]:
        return [each for each in self.backends if each.is_open and each.takes(want.name, want.rank)]

    def _has_room(self, backend: Backend, name: str | None) -> bool:
        most = self.compositions or backend.numbers.max_lora or COMPOSITIONS
        return name is None or name in backend.live or len(backend.live) < most

    def _lacks_room(self, want: Want) -> bool:
        able = self._able(want)
        return bool(able) and not any(self._has_room(backend, want.name) for backend in able)

    def _hopeless(self, want: Want) -> AwayError | None:
        """Why no backend will take a request, if none will."""
        there = [backend for backend in self.backends if backend.is_there]
        if not there:
            return AwayError(NOBODY, 2.0, "no_backend")
        if not any(backend.takes(want.name, want.rank) for backend in there):
            return AwayError(NOT_LOADED, 30.0, "adapter_not_loaded")
        return None
