"""One prompt on its way through the service: from the handler that waits to the engine's thread, and back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from hilora.serve.asked import Ask, Done, Looked, Piece, Why
from hilora.serve.faults import LateError

Event = Piece | Done | Looked | BaseException


class Outbox:
    """What other threads have to tell the event loop's, in order; many at once cost one wake-up.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self._left = loop, deque[Callable[[], None]]()
        self._woken = False

    def put(self, tell: Callable[[], None]) -> None:
        """Have something called in the event loop's thread, soon."""
        self._left.append(tell)
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self._left.clear()

    def _flush(self) -> None:
        self._woken = False
        while self._left:
            self._left.popleft()()


class Ticket:
    """One prompt, and what comes for it (`asked.Answering`). All of it is used in the event loop's thread only.

    Args:
        ask: what is asked.
        outbox: takes what comes from other threads.
        seconds: until the answers have to be there.
        give_up: called when nobody waits any more.
        only_route: no answers are wanted.
    """

    def __init__(
        self,
        ask: Ask,
        outbox: Outbox,
        seconds: float,
        give_up: Callable[[Ticket], None],
        *,
        only_route: bool = False,
    ) -> None:
        self.only_route = only_route
        self.ask, self.outbox, self.began = ask, outbox, time.perf_counter()
        self.routed: asyncio.Future[Why] = asyncio.get_running_loop().create_future()
        self.work: Any = None  # the desk's
        self.cancelled = False
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seconds, self._give_up = seconds, give_up
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._left = ask.answers
        self._closed = False

    @property
    def why(self) -> Why:
        """How it is served."""
        return self.routed.result()

    def tell(self, event: Event) -> None:
        """From any thread: a piece, an answer, or what went wrong."""
        self.outbox.put(lambda: self._take(event))

    def tell_routed(self, why: Why) -> None:
        """From any thread: how it is served."""
        self.outbox.put(lambda: None if self.routed.done() else self.routed.set_result(why))

    def _take(self, event: Event) -> None:
        if self._closed:  # an error that nobody hears would be logged as never retrieved
            return
        if isinstance(event, BaseException) and not self.routed.done():
            self.routed.set_exception(event)
        else:
            self._events.put_nowait(event)

    async def wait_routed(self) -> Why:
        """How it is served, once that is known.

        Raises:
            LateError: the deadline has passed.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await asyncio.shield(self.routed)
        except TimeoutError as error:
            await self.close()
            raise self._late() from error
        except BaseException:
            await self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Pieces and ends, as they come.

        Raises:
            LateError: the deadline has passed.
            BaseException: what went wrong.
        """
        try:
            while self._left:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        event = await self._events.get()
                except TimeoutError as error:
                    raise self._late() from error
                if isinstance(event, BaseException):
                    raise event
                self._left -= isinstance(event, Done | Looked)
                yield event
        finally:
            await self.close()

    async def close(self) -> None:
        """Nobody waits any more; what has not ended ends at the next step."""
        if not self._closed:
            self._closed = self.cancelled = True
            if self.routed.done() and not self.routed.cancelled():
                self.routed.exception()  # seen
            self._give_up(self)

    def _late(self) -> LateError:
        return LateError(f"No whole answer within {self._seconds:g} seconds. Ask for fewer tokens, or later.")
