"""Connections to one server, which stay open between requests.

A request's head and body go out together: on their own each would wake the server up. A connection is taken from
those that are idle, the last one first, or made.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import h11

from hilora.errors import InputError
from hilora.gateway.told import LostError, UnreachedError

CONNECT = 5.0
"""Seconds for a connection to be made."""
IDLE = 3.0
"""Seconds for which one is kept; vLLM closes it after five."""
READ = 64 << 10
"""Bytes that are read at once, at most."""
HEAD = 64 << 10
"""Bytes of an answer's head, at most."""
PORTS = {"http": 80, "https": 443}


class Connection:
    """One of them.

    Args:
        reader, writer: of asyncio.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD)
        self._idle_since = 0.0

    async def ask(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send a request; the head of its answer.

        Raises:
            LostError: there was none.
        """
        events = (request, h11.Data(body), h11.EndOfMessage()) if body else (request, h11.EndOfMessage())
        try:
            self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
            await self._writer.drain()
        except OSError as error:
            raise LostError(str(error)) from error
        while isinstance(event := await self._next(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise LostError("the server closed the connection without an answer")
        return event

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The answer's body as it comes.

        Raises:
            LostError: it broke off.
        """
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    def rest(self) -> bool:
        """Its answer is done with; whether it can take another request. If not, it ends at once, and so whoever
        still answers on it sees that nobody listens."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._idle_since = time.monotonic()
            return True
        self.close()
        return False

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or may do so now."""
        gone = self._reader.at_eof() or self._writer.is_closing()
        return gone or time.monotonic() - self._idle_since > IDLE

    def close(self) -> None:
        """End it."""
        self._writer.transport.abort()

    async def _next(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ))
        except (OSError, h11.RemoteProtocolError) as error:
            raise LostError(str(error) or type(error).__name__) from error
        return event


class Answer:
    """An answer whose body is still to come.

    Args:
        connections: to which its connection goes back.
        connection: on which it comes.
        head: of it.

    Attributes:
        status: of it.
        kind: its Content-Type.
    """

    def __init__(self, connections: Connections, connection: Connection, head: h11.Response) -> None:
        self._connections, self._connection = connections, connection
        self.status = head.status_code
        self.kind = next((value for name, value in head.headers if name == b"content-type"), b"").decode("latin-1")

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; raises a LostError where it breaks off."""
        return self._connection.body()

    async def whole(self) -> bytes:
        """All of the body; raises likewise."""
        return b"".join([chunk async for chunk in self])

    def close(self) -> None:
        """Nothing more of it is wanted."""
        self._connections.put(self._connection)


class Connections:
    """All connections to a server.

    Args:
        url: of the server, with a path or without.
        headers: of all requests.

    Raises:
        InputError: that is no such URL.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        try:
            parsed = urlsplit(url)
            port = parsed.port or PORTS.get(parsed.scheme)
        except ValueError as error:
            raise InputError(f"--backend is no URL: {error}. Give http://HOST:PORT.") from error
        if port is None or not parsed.hostname:
            raise InputError(f"--backend is {url!r:.100}; expected http://HOST:PORT.")
        if parsed.username or parsed.password:
            raise InputError("--backend holds a password. Give the key as HILORA_BACKEND_KEY, and the URL without.")
        self._place = parsed.hostname, port
        self._path = parsed.path.rstrip("/").removesuffix("/v1")
        fixed = {"Host": parsed.netloc, "Accept-Encoding": "identity", **headers}
        self._headers = [(name.encode(), value.encode()) for name, value in fixed.items()]
        self._ssl = ssl.create_default_context() if parsed.scheme == "https" else None
        self._idle: list[Connection] = []

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Ask; the answer is to be closed.

        Args:
            method, path, body: of the request.
            headers: more of them; "_" stands for "-".

        Raises:
            UnreachedError: there is no connection.
            LostError: nothing came back.
        """
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"Content-Length": str(len(body))} if body else {}
        more = [(name.encode(), value.encode()) for name, value in given.items()]
        request = h11.Request(method=method, target=self._path + path, headers=[*self._headers, *more])
        connection = await self._take()
        try:
            return Answer(self, connection, await connection.ask(request, body))
        except BaseException:
            connection.close()
            raise

    async def ask(self, method: str, path: str, seconds: float, words: Any = None) -> tuple[int, bytes]:
        """Status and body of a short answer.

        Args:
            method, path: of the request.
            seconds: that it may take.
            words: of the body, as JSON.

        Raises:
            LostError: nothing came back in time.
        """
        body = b"" if words is None else json.dumps(words).encode()
        kind = {} if words is None else {"Content_Type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                answer = await self.send(method, path, body, **kind)
                try:
                    return answer.status, await answer.whole()
                finally:
                    answer.close()
        except TimeoutError as error:
            raise LostError(f"{path} was not answered in {seconds:g} seconds") from error

    def put(self, connection: Connection) -> None:
        """A connection has done what it was for."""
        if connection.rest():
            self._idle.append(connection)

    def close(self) -> None:
        """Close all that are idle."""
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(CONNECT):
                return Connection(*await asyncio.open_connection(*self._place, ssl=self._ssl))
        except (OSError, TimeoutError) as error:
            raise UnreachedError(f"no connection: {error or type(error).__name__}") from error
