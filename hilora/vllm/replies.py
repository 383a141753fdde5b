"""vLLM's answers on their way out, with what hilora has to say added."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

EVENT, END = b"data: ", b"\n\n"
Change = Callable[[dict[str, Any]], object]
"""What is done to an object of JSON, in place."""


class Added:
    """Sends an answer on, with headers of its own and one object of its JSON changed: of a stream the first.

    Args:
        send: the server's.
        headers: that are added.
        change: what becomes of the object.
    """

    def __init__(self, send: Send, headers: Mapping[str, str], change: Change) -> None:
        self.send, self.headers, self.change = send, headers, change
        self._start: Message | None = None
        self._held = b""
        self._streams = self._done = False

    async def __call__(self, message: Message) -> None:
        """A message of ASGI."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body" or self._done:
            await self.send(message)
        else:
            await self._go_on(message)

    async def _begin(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers.update(dict(self.headers))
        kind = headers.get("content-type", "")
        self._streams = kind.startswith("text/event-stream")
        if message["status"] == 200 and kind.startswith("application/json"):
            self._start = message  # its length is not known yet
            return
        self._done = not (message["status"] == 200 and self._streams)
        await self.send(message)

    async def _go_on(self, message: Message) -> None:
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        if more and not (self._streams and END in self._held):
            return
        if self._streams:
            first, end, rest = self._held.partition(END)
            body = EVENT + self._changed(first.removeprefix(EVENT)) + end + rest
        else:
            body = self._changed(self._held)
        self._done = True
        if self._start is not None:
            MutableHeaders(scope=self._start)["content-length"] = str(len(body))
            await self.send(self._start)
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    def _changed(self, text: bytes) -> bytes:
        found = json.loads(text)
        self.change(found)
        return json.dumps(found, separators=(",", ":")).encode()
