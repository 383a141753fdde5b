"""A request answered: read, routed, sent to a backend, and passed back as it comes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hilora.gateway.chooser import Chooser, Chosen
from hilora.gateway.composition import compose
from hilora.gateway.exchange import BrokenError
from hilora.gateway.fleet import Fleet
from hilora.gateway.job import Clock, Job
from hilora.gateway.meters import Meters
from hilora.gateway.parts import Made
from hilora.gateway.reading import Read
from hilora.serve.asked import BASE, Ask, Done, Why
from hilora.serve.limits import Limits
from hilora.serve.openai.answered import GoneError, in_its_words, while_there, whole
from hilora.serve.openai.errors import Json, error_of, id_of
from hilora.serve.openai.forms import ABSTAIN, Form, Reply
from hilora.serve.openai.reasons import LONG, SHOWN, headers_of, reasons_of
from hilora.serve.openai.stream import Streamed, event
from hilora.serve.why import told_of

NOTE = "X-Hilora-Note"
TIMING = "Server-Timing"
"""Where a request's milliseconds went until its answer began, as browsers and proxies know it."""
PLAIN = " ,.:;()'/!?=+*"
"""Characters of notes that headers may hold as they are."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proxy:
    """What requests go through.

    Attributes:
        chooser: routes.
        fleet: answers.
        limits: of requests.
        meters: count.
        levels: of the grid of weights.
    """

    chooser: Chooser
    fleet: Fleet
    limits: Limits
    meters: Meters
    levels: int | None

    async def choose(self, ask: Ask) -> Chosen:
        """How a prompt is served; whoever names the base model waits for nobody.

        Raises:
            HiloraError: it cannot be.
        """
        if ask.model != BASE:
            with in_its_words(ask):
                return await self.chooser.choose(ask)
        view = self.chooser.view
        why = told_of(view, ask.caller, BASE, (), "", 0, view.epoch_key)
        return Chosen((), "", why, False, Made(view, view), 0.0)


class Sent:
    """An answer on its way to the client (`job.Out`).

    Args:
        send: the request's.
        clock: of the request.

    Attributes:
        headers: that say why.
        reasons: that a whole answer is to hold, if it is.
    """

    def __init__(self, send: Send, clock: Clock) -> None:
        self.send, self.clock = send, clock
        self.headers: dict[str, str] = {}
        self.reasons: Any = None
        self.begun = self.told = False

    async def whole(self, status: int, kind: str, content: bytes) -> None:
        """See `job.Out`."""
        if self.begun:
            raise BrokenError
        self.begun = self.told = True
        if self.reasons is not None and status == 200:
            content = json.dumps(json.loads(content) | {"hilora": self.reasons}, separators=(",", ":")).encode()
        await self._start(status, {"Content-Type": kind or "application/json", "Content-Length": str(len(content))})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})

    async def events(self, data: bytes) -> None:
        """See `job.Out`."""
        if not self.begun:
            self.begun = True
            # or nginx keeps the pieces until there are many
            await self._start(200, {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"})
        if not self.told:
            self.told = any(line.startswith(b"data:") for line in data.splitlines())
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """See `job.Out`."""
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: Exception, request: str) -> None:
        """The stream ends with an error, and without [DONE]."""
        await self.send(
            {"type": "http.response.body", "body": event(error_of(error, request).body), "more_body": True}
        )
        await self.end()

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        told = headers | self.headers | {TIMING: self.clock.told}
        raw = [(name.lower().encode(), value.encode()) for name, value in told.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})


class Forwarded(Response):
    """A response that has its request answered while it is sent, and ends that when its client leaves.

    Args:
        proxy: what it goes through.
        path: of the API.
        form: of answers that the gateway makes itself.
        asked: the request.
    """

    def __init__(self, proxy: Proxy, path: str, form: Form, asked: Read) -> None:
        super().__init__()
        self.proxy, self.path, self.form, self.asked = proxy, path, form, asked
        self.clock = Clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and send."""
        try:
            await while_there(receive, self._answer(send, id_of(scope)))
        except GoneError:
            self.proxy.meters.left()
            log.info("The client of request %s has left.", id_of(scope))

    async def _answer(self, send: Send, request: str) -> None:
        proxy, asked = self.proxy, self.asked
        proxy.meters.came(asked.ask.model)
        sent = Sent(send, self.clock)
        try:
            with self.clock.at("routing"):
                chosen = await proxy.choose(asked.ask)
            sent.headers = headers(asked, chosen.why)
            if chosen.silent:
                await self._stay_silent(send, request, chosen)
                return
            if asked.explain:
                sent.reasons = reasons_of(asked.ask, chosen.why, True)
            composition = compose(chosen.parts, levels=proxy.levels)
            job = Job(self.path, asked.fields, composition, chosen.source.factors, request, self.clock)
            await proxy.fleet.send(job, sent)
        except Exception as error:  # of the request, or of a stream that has begun
            proxy.meters.failed(error)
            if not sent.begun:
                raise
            await sent.fail(error, request)
        finally:
            proxy.meters.answered(self.clock)

    async def _stay_silent(self, send: Send, request: str, chosen: Chosen) -> None:
        """Answer without words, as the service does where a method abstains."""
        asked, silence = self.asked, Silence(chosen.why, self.asked.ask)
        options = asked.fields.get("stream_options")
        if asked.ask.follow:
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            await Streamed(silence, asked.ask, self.form, explain=asked.explain, usage=usage).send_all(send, request)
            return
        _, ended = await whole(silence, asked.ask)
        reply = Json(
            Reply(self.form, asked.ask, chosen.why, asked.explain).whole(ended), headers=headers(asked, chosen.why)
        )
        await send({"type": "http.response.start", "status": 200, "headers": reply.raw_headers})
        await send({"type": "http.response.body", "body": reply.body, "more_body": False})


@dataclass(frozen=True)
class Silence:
    """No answer, and why (`asked.Answers`, `asked.Answering`)."""

    why: Why
    ask: Ask

    async def answer(self, ask: Ask) -> Silence:
        """See `asked.Answers`."""
        return self

    async def __aiter__(self) -> AsyncIterator[Done]:
        """See `asked.Answering`."""
        for number in range(self.ask.answers):
            yield Done(number, "", ABSTAIN, 0)

    async def close(self) -> None:
        """Nothing is under way."""


def headers(asked: Read, why: Why) -> dict[str, str]:
    """Why, in short; a seed where the client gave one: others are the backend's affair."""
    found = headers_of(asked.ask, why)
    if not asked.seeded:
        del found[SHOWN[2]]
    if why.note:
        found[NOTE] = quote(why.note, safe=PLAIN)[:LONG]
    return found
