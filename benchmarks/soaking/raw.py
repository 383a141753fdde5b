"""Clients by raw sockets, many at once in one thread."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from soaking.made import PROMPT, Server, until

FORM = b"multipart/form-data; boundary=edge"
STREAM = {"model": "auto", "prompt": "abab baab abba", "max_tokens": 50, "stream": True, "logprobs": 5, "n": 4}


def head(path: str, *headers: bytes, method: bytes = b"POST", kind: bytes = b"application/json") -> bytes:
    """A request's head, its last line left out."""
    lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: localhost", b"Content-Type: " + kind, *headers]
    return b"\r\n".join(lines) + b"\r\n"


def request(path: str, body: Any, *headers: bytes) -> bytes:
    """A whole request."""
    sent = json.dumps(body).encode()
    return head(path, b"Content-Length: %d" % len(sent), *headers) + b"\r\n" + sent


class Raw:
    """A connection that does what no good client does.

    Args:
        server: whose.
        narrow: it takes little that it has not read.
    """

    def __init__(self, server: Server, *, narrow: bool = False) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.address = host, int(port)
        self.socket = socket.socket()
        self.socket.setblocking(False)
        if narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)

    async def open(self) -> Raw:
        """Connect."""
        await asyncio.get_running_loop().sock_connect(self.socket, self.address)
        return self

    async def send(self, data: bytes) -> bool:
        """Send all; whether the server still took it."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)
            return True
        return False

    async def read(self, most: int = 65536) -> bytes:
        """Something; nothing at the end."""
        with suppress(OSError):
            return await asyncio.get_running_loop().sock_recv(self.socket, most)
        return b""

    async def whole(self, seconds: float = 60.0) -> bytes:
        """All until the server ends it.

        Raises:
            TimeoutError: it does not.
        """
        got = b""
        async with asyncio.timeout(seconds):
            while part := await self.read():
                got += part
        return got

    async def dribble(self, data: bytes, pause: float, seconds: float) -> bytes | None:
        """Send the same over and over, until the server ends it: what it said then; None where it does not."""
        reading = asyncio.ensure_future(self.whole(seconds))
        while not reading.done():
            await asyncio.wait((reading,), timeout=pause)
            if not reading.done():
                await self.send(data)
        return None if reading.exception() else reading.result()

    def vanish(self, *, reset: bool = False) -> None:
        """Close it."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def warm(server: Server) -> None:
    """Have a crowd ask: what is held from the first one on, threads above all, is no leak."""
    client = httpx2.Client(base_url=server.url, timeout=300)
    bodies = [PROMPT | {"model": model, "stream": True} for model in ("auto", "alpha")] * 40
    with client, ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda body: client.post("/v1/completions", json=body), bodies))


def status(got: bytes) -> int:
    """Of the first response; 0 where there is none."""
    return int(got.split()[1]) if got.startswith(b"HTTP/1.1 ") else 0


class Held:
    """What a server holds, to be compared with later."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.settle()
        self.files = self._files
        self.weigh()

    def weigh(self) -> None:
        """Compare memory with what it is now."""
        self.memory = self._process.memory_info().rss

    @property
    def _process(self) -> psutil.Process:
        return psutil.Process(self.server.process.pid)

    @property
    def _files(self) -> int:
        return self._process.num_fds()

    @property
    def connections(self) -> int:
        """Connections that the server holds."""
        return sum(each.status == "ESTABLISHED" for each in self._process.net_connections("tcp"))

    def settle(self) -> None:
        """Wait until nothing waits or runs, and nobody but its own client is connected."""
        until(self._idle, 60)

    def _idle(self) -> bool:
        state = self.server.client.get("/readyz").json()
        return bool(state["waiting"] == state["running"] == 0 and self.connections <= 1)

    def wrong(self) -> list[str]:
        """What did not come back: open files, requests, files of uploads, memory (64 MiB are no leak)."""
        try:
            self.settle()
            until(lambda: self._files <= self.files + 1, 20)
        except TimeoutError:
            state = self.server.client.get("/readyz").json()
            return [f"left: {state}, {self.connections} connections, {self._files} files, {self.files} before"]
        incoming = Path(self.server.pool) / "serve" / "incoming"
        with suppress(TimeoutError):
            until(lambda: not any(path.is_file() for path in incoming.rglob("*")), 60)
        more = self._process.memory_info().rss - self.memory
        found = [f"{more >> 20} MiB more memory"] if more > 64 << 20 else []
        return found + [f"left: {path.name}" for path in incoming.rglob("*") if path.is_file()]


class Good:
    """A client as it should be, that asks all the while.

    Args:
        server: whom.
        busy: statuses that are no fault.
    """

    def __init__(self, server: Server, busy: tuple[int, ...] = ()) -> None:
        self.server, self.busy = server, busy
        self.answered = self.refused = 0
        self.slowest = 0.0
        self.wrong: list[str] = []
        self.body = {"model": "alpha", "prompt": "abab baab abba", "temperature": 0, "max_tokens": 12}
        self.solo = server.client.post("/v1/completions", json=self.body).json()["choices"]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask while the context is open."""
        task = asyncio.ensure_future(self._ask())
        try:
            yield
        finally:
            task.cancel()

    async def _ask(self) -> None:
        while True:
            began = time.perf_counter()
            try:
                client = await Raw(self.server).open()
                await client.send(request("/v1/completions", self.body, b"Connection: close"))
                got = await client.whole(30)
                client.vanish()
            except (OSError, TimeoutError) as error:
                self.wrong.append(f"a good client: {error!r}")
                continue
            if status(got) in self.busy:
                self.refused += 1
            elif status(got) != 200:
                self.wrong.append(f"a good client: {got[:300]!r}")
            else:
                self.answered += 1
                self.slowest = max(self.slowest, time.perf_counter() - began)
                if json.loads(got.partition(b"\r\n\r\n")[2])["choices"] != self.solo:
                    self.wrong.append("a good client: another answer")
            await asyncio.sleep(0.02)
