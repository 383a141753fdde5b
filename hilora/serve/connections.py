"""Connections: how slow a client may be, and how many there are at once.

uvicorn waits for ever for a request's headers, for its body, and for a client that does not read what it asked for;
each such connection holds an open file. Here every client is looked at twice a second, and has to go on.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hilora.serve.limits import Limits
from hilora.serve.openai.errors import Told, told

ACCEPTED = 32
"""Connections that are accepted in a turn of the event loop."""
QUEUE = 1024
"""Connections that wait to be accepted."""
OTHERS = 5 * ACCEPTED + 64
"""Open files that are kept: for connections on their way in or out, which takes some turns of the event loop, and
for the pool, uploads and their checks."""
FEWEST = 8
"""Connections at the least."""
YOUNG = 1.0
"""Seconds for which a client that has asked for nothing yet makes no room for others."""
log = logging.getLogger(__name__)


def room(most: int, opened: int) -> int:
    """How many connections there may be, with as many files as this process may open.

    Args:
        most: at most so many.
        opened: files that are open already.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else min(most, max(FEWEST, files - opened - OTHERS))


class Together:
    """A transport on which the head of an answer waits for what comes with it: each write wakes the client up.

    Args:
        transport: asyncio's.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""
        self.is_closing, self.abort, self.get_extra_info = (
            transport.is_closing,
            transport.abort,
            transport.get_extra_info,
        )
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.set_protocol = transport.set_protocol

    def write(self, data: bytes) -> None:
        """Send; a head with what follows, which may be nothing."""
        is_head = data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1")  # 100 Continue has no body
        if is_head and not self._head:
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not read."""
        return len(self._head) + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """End it when all is sent."""
        self.write(b"")
        self._transport.close()


class Connection(H11Protocol):
    """One connection, which ends where its client is too slow, or where there are too many.

    Args:
        limits: `patience` and `rate` of a client, and how many `connections` there are.
        given: what uvicorn gives.
    """

    def __init__(self, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self.limits = limits
        self._received = 0
        self._owes: tuple[str, Any] = ("", None)
        self._since, self._then = self.loop.time(), 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there: where there are too many, the one that has asked for nothing for longest goes, or it."""
        super().connection_made(cast(asyncio.Transport, Together(transport)))
        if len(self.connections) <= self.limits.connections:
            return
        there = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        there = [each for each in there if not each.transport.is_closing()]
        if len(there) < self.limits.connections:
            return
        idle = [each for each in there if each.cycle is None or each.cycle.response_complete]
        oldest = min(idle, key=lambda each: each._since, default=self)
        if oldest is not self and self.loop.time() - oldest._since > YOUNG:
            oldest.transport.abort()
            return
        log.warning("A client was refused: there are %d connections already.", len(there))
        busy = told(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections. Come again.", "server_error", "overloaded")
        busy.headers["Retry-After"] = "1"
        self._refuse(busy)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        self._received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """The client has read."""
        self._owes = ("", None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._refuse(told(HTTPStatus.BAD_REQUEST, "The request is not HTTP as it should be.", code="invalid_request"))

    def look(self) -> None:
        """End it where the client is too slow."""
        now, owes, done = self.loop.time(), (self._kind, self.cycle), 0
        if owes[0] == "body":
            done = self._received
        elif owes[0] == "read":
            done = -self.transport.get_write_buffer_size()
        seconds = now - self._since
        if owes != self._owes:
            self._owes, self._since, self._then = owes, now, done
        elif owes[0] and seconds >= self.limits.patience:
            if done - self._then < self.limits.rate * seconds:
                self._end(owes[0])
            self._since, self._then = now, done

    @property
    def _kind(self) -> str:
        """What the client has to do next: send a request's head, its body, or the rest of it; read; nothing."""
        if self.flow.write_paused or self.transport.is_closing():
            return "read"
        if self.conn.their_state is h11.SEND_BODY:
            if self.conn.our_state is h11.DONE:
                return "rest"
            return "" if self.flow.read_paused else "body"
        waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None  # uvicorn ends idle ones
        return "head" if waits else ""

    def _end(self, kind: str) -> None:
        if kind == "read":
            self.transport.abort()
        elif kind == "body" or (kind == "head" and self.conn.trailing_data[0]):
            message = (
                f"The request came too slowly: its headers take {self.limits.patience:g} seconds at most, and its "
                f"body comes with {self.limits.rate} bytes a second at least."
            )
            self._refuse(told(HTTPStatus.REQUEST_TIMEOUT, message, "timeout_error", "request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: Told) -> None:
        """Say why, if nothing was said yet, and end."""
        if self.cycle is not None and not self.cycle.response_complete:  # whoever answers it is told that it is over
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        answer = error.response
        headers = [*answer.raw_headers, (b"connection", b"close")]
        with suppress(h11.LocalProtocolError):  # an answer has begun, or has no body
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                head = h11.Response(status_code=error.status, headers=headers)
                events = head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()
                self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


class Watched(uvicorn.Server):
    """A server whose connections are looked at."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for each in sockets or ():  # asyncio takes one number for both
            each.listen(QUEUE)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 5 == 0:
            for each in list(self.server_state.connections):
                if isinstance(each, Connection):
                    each.look()
        return await super().on_tick(counter)
