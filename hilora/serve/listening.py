"""A socket, a server at it, and its orderly end."""

from __future__ import annotations

import ctypes
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from hilora.errors import InputError
from hilora.serve.connections import ACCEPTED, Connection, Watched
from hilora.serve.limits import Limits

M_ARENA_MAX = -8
"""Of glibc's mallopt: how many heaps there are."""


class Orderly(Watched):
    """A server that SIGTERM and Ctrl-C end, and that has ended well then."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Meanwhile they are this server's."""
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def share_malloc() -> None:
    """Have glibc's malloc keep one heap for all threads; elsewhere nothing happens.

    A heap of each thread's own keeps what others have freed in it, and a server's memory grows for hours.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def config_of(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """How the service is served."""
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, limits)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=ACCEPTED,
        timeout_graceful_shutdown=round(limits.drain) + 5,
        h11_max_incomplete_event_size=2 * limits.header,  # longer ones are refused by the guard, in words
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    What is written to its connections goes out at once. asyncio sees to that only where a socket says that it is TCP,
    which those of `create_server` do not: the end of an answer then waits 40 ms for word that its head has come.

    Raises:
        InputError: the address is taken, or not this machine's.
    """
    try:
        made = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections have it from here
        return made
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"Cannot listen on {host}:{port}: {why}. Give another --host or --port.") from error
