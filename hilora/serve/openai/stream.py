"""An answer as server-sent events."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hilora.serve.asked import Answering, Answers, Ask, Done, Piece
from hilora.serve.openai.answered import GoneError, answered, while_there
from hilora.serve.openai.errors import error_of, id_of
from hilora.serve.openai.forms import ABSTAIN, Form, Reply, ends_as
from hilora.serve.openai.reasons import headers_of, reasons_of
from hilora.serve.openai.silence import with_silences

DONE = b"data: [DONE]\n\n"
SILENCE = 15.0
"""Seconds without an event after which a comment says that the stream lives: proxies end idle connections."""
COMMENT = b": no token yet\n\n"
"""Passed over by whoever reads events."""
log = logging.getLogger(__name__)


def event(data: Any, name: str = "") -> bytes:
    """One event; all in ASCII, for clients take other characters for ends of lines."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()


async def chunks(reply: Reply, answering: Answering) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a stream; what fails is raised."""
    asked, form = reply.ask, reply.form
    head = reply.head(form.chunk) | ({"usage": None} if reply.usage else {})
    told: dict[str, Any] = {"hilora": reasons_of(asked, reply.why, reply.explain)}
    if (opens := form.opens()) is not None:
        for answer in range(asked.answers):
            yield head | {"choices": [reply.choice(answer, opens, None)]} | told
            told = {}
    ended: list[Done] = []
    written: defaultdict[int, int] = defaultdict(int)  # characters of an answer's tokens so far
    tokens: defaultdict[int, int] = defaultdict(int)
    async for came in answering:
        answer, end = came.answer, None
        says, logs = form.says(came.text if isinstance(came, Piece) else "", True), came.logs
        if isinstance(came, Done):
            ended.append(came)
            end, logs = ends_as(came), came.logs[tokens[answer] :]
            if came.finish_reason == ABSTAIN:
                told = {"hilora": reasons_of(asked, reply.why, reply.explain) | {"abstained": True}}
        yield head | {"choices": [reply.choice(answer, says, end, logs, written[answer])]} | told
        told = {}
        tokens[answer] += len(logs)
        written[answer] += sum(len(each.token) for each in logs)
    if reply.usage:
        yield head | {"choices": [], "usage": reply.used(ended)}


class Streamed(Response):
    """A response that has its prompt answered while it is sent, and ends that when its client leaves.

    What the desk refuses is raised before anything is sent; what fails later is an event of its own, and the last.

    Args:
        desk: that answers.
        ask: what.
        form: of the answer.
        explain: whether all reasons are told.
        usage: whether the tokens used are told.
    """

    media_type = "text/event-stream"

    def __init__(self, desk: Answers, ask: Ask, form: Form, *, explain: bool, usage: bool) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # or nginx keeps the pieces until there are many
        del self.headers["content-length"]
        self.desk, self.ask, self.form, self.explain, self.usage = desk, ask, form, explain, usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and send."""
        try:
            await while_there(receive, self.send_all(send, id_of(scope)))
        except GoneError:
            log.info("The client of request %s has left.", id_of(scope))

    async def send_all(self, send: Send, request: str) -> None:
        """The same, whether or not the client is still there.

        Args:
            send: the request's.
            request: its id.
        """
        async with answered(self.desk, self.ask) as answering:
            self.headers.update(headers_of(self.ask, answering.why))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events(answering, request)) as events:
                async for sent in events:
                    await send({"type": "http.response.body", "body": sent, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, answering: Answering, request: str) -> AsyncGenerator[bytes, None]:
        reply = Reply(self.form, self.ask, answering.why, self.explain, self.usage)
        try:
            async with (
                aclosing(chunks(reply, answering)) as made,
                aclosing(with_silences(made, SILENCE)) as coming,
            ):
                async for chunk in coming:
                    yield COMMENT if chunk is None else event(chunk)
        except Exception as error:  # noqa: BLE001  # the status is sent already: the client gets it as an event
            yield event(error_of(error, request).body, "error")
        else:
            yield DONE
