"""Connections to one server, which stay open between requests.

httpcore speaks HTTP; here is what it speaks on. A request's head and body go out together: on their own each would
wake the server up. A connection is taken from those that are idle, the last one first, or made.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from hilora.errors import InputError
from hilora.gateway.told import LostError, UnreachedError

CONNECT = 5.0
"""Seconds for a connection to be made."""
IDLE = 3.0
"""Seconds for which one is kept; vLLM closes it after five."""
LARGE = 64 << 10
"""Bytes that are held back for what comes with them, at most."""
PORTS = {"http": 80, "https": 443}
FAILED = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


class Wire(httpcore2.AsyncNetworkStream):
    """One connection's bytes.

    Args:
        reader, writer: of asyncio.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._held: list[bytes] = []
        self._size = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What comes next; before that, what is held back goes out."""
        try:
            await self._flush()
            return await self.reader.read(max_bytes)
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send, together with what follows."""
        self._held.append(buffer)
        self._size += len(buffer)
        if self._size > LARGE:
            try:
                await self._flush()
            except OSError as error:
                raise httpcore2.WriteError(str(error)) from error

    async def _flush(self) -> None:
        if self._held:
            data, self._held, self._size = b"".join(self._held), [], 0
            self.writer.write(data)
            await self.writer.drain()

    async def aclose(self) -> None:
        """End it at once: a server that still answers sees that nobody listens."""
        self.writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Wire:
        """The same, encrypted from now on."""
        try:
            async with asyncio.timeout(timeout):
                await self.writer.start_tls(ssl_context, server_hostname=server_hostname)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            raise httpcore2.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        """Whether there is something to read, where nothing should be: the server's end."""
        if info == "is_readable":
            return self.reader.at_eof() or self.writer.is_closing()
        return self.writer.get_extra_info({"ssl_object": "ssl_object", "socket": "socket"}.get(info, info))


class Network(httpcore2.AsyncNetworkBackend):
    """Makes them."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Wire:
        """Connect."""
        try:
            async with asyncio.timeout(timeout):
                return Wire(*await asyncio.open_connection(host, port))
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpcore2.ConnectError(error.strerror or str(error)) from error


class Answer:
    """An answer whose body is still to come.

    Args:
        connections: to which its connection goes back.
        connection: on which it comes.
        answer: as httpcore has it.

    Attributes:
        status: of it.
        kind: its Content-Type.
    """

    def __init__(
        self, connections: Connections, connection: httpcore2.AsyncHTTPConnection, answer: httpcore2.Response
    ) -> None:
        self._connections, self._connection, self._answer = connections, connection, answer
        self.status = answer.status
        found = (value for name, value in answer.headers if name.lower() == b"content-type")
        self.kind = next(found, b"").decode("latin-1")

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes.

        Raises:
            LostError: the connection broke.
        """
        try:
            async for chunk in self._answer.aiter_stream():
                yield chunk
        except FAILED as error:
            raise LostError(str(error) or type(error).__name__) from error

    async def whole(self) -> bytes:
        """All of the body; raises likewise."""
        return b"".join([chunk async for chunk in self])

    async def close(self) -> None:
        """Nothing more of it is wanted."""
        await self._answer.aclose()
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
        self._origin = parsed.scheme.encode(), parsed.hostname.encode("idna"), port
        self._path = parsed.path.rstrip("/").removesuffix("/v1").encode()
        host = parsed.netloc.rpartition("@")[2]
        fixed = {"Host": host, "Accept-Encoding": "identity", **headers}
        self._headers = [(name.encode(), value.encode()) for name, value in fixed.items()]
        self._network = Network()
        self._ssl = httpcore2.default_ssl_context() if parsed.scheme == "https" else None
        self._idle: list[httpcore2.AsyncHTTPConnection] = []

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Ask; the answer is to be closed.

        Args:
            method, path, body: of the request.
            headers: more of them; "_" stands for "-".

        Raises:
            UnreachedError: there is no connection.
            LostError: nothing came back.
        """
        scheme, host, port = self._origin
        url = httpcore2.URL(scheme=scheme, host=host, port=port, target=self._path + path.encode())
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        sized = [(b"Content-Length", str(len(body)).encode())] if body else []
        asked = httpcore2.Request(
            method, url, headers=[*self._headers, *given, *sized], content=body, extensions={"timeout": TIMEOUT}
        )
        connection = await self._take()
        try:
            return Answer(self, connection, await connection.handle_async_request(asked))
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise UnreachedError(str(error) or type(error).__name__) from error
        except FAILED as error:
            raise LostError(str(error) or type(error).__name__) from error

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
                    await answer.close()
        except TimeoutError as error:
            raise LostError(f"{path} was not answered in {seconds:g} seconds") from error

    def put(self, connection: httpcore2.AsyncHTTPConnection) -> None:
        """A connection has done what it was for."""
        if connection.is_idle():
            self._idle.append(connection)

    async def close(self) -> None:
        """Close all that are idle."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self) -> httpcore2.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        scheme, host, port = self._origin
        origin = httpcore2.Origin(scheme, host, port)
        return httpcore2.AsyncHTTPConnection(
            origin, ssl_context=self._ssl, keepalive_expiry=IDLE, network_backend=self._network
        )


TIMEOUT = {"connect": CONNECT, "read": None, "write": None, "pool": None}
"""Of httpcore: whatever else takes its time is bounded by whoever asks."""
