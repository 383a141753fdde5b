"""What a server writes down: one JSON object a line, on standard error; prompts and answers only if it is told to."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("hilora.serve")
FIELDS = ("request", "method", "path", "status", "ms", "tenant", "adapters", "pool_version", "subject", "state")
TEXTS = ("prompt", "answer")
"""What a line may hold beside its message, and what it holds only if that was asked for."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: record.__dict__[name] for name in (*FIELDS, *TEXTS) if name in record.__dict__}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def write_down(level: int = logging.INFO) -> None:
    """Have the server's and uvicorn's records written to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("hilora", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


class Journal:
    """Writes a line for each request that has been answered (ASGI).

    Args:
        app: answers.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and note what and how fast."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, found = time.perf_counter(), dict[str, Any]()

        async def seen(message: Any) -> None:
            if message["type"] == "http.response.start":
                found["status"] = message["status"]
                headers = {name.lower(): value for name, value in message.get("headers", ())}
                found["request"] = headers.get(b"x-request-id", b"").decode("latin-1")
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            ms = round(1e3 * (time.perf_counter() - began), 1)
            LOG.info("answered", extra={"method": scope["method"], "path": scope["path"], "ms": ms, **found})
