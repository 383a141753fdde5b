"""A desk that answers at once, without a model, and an application before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from hilora.errors import UnknownNameError
from hilora.pool.view import Entry
from hilora.serve.asked import AUTO, BASE, Ask, Caller, Done, Looked, Piece, TokenLog, Why
from hilora.serve.faults import UnauthorizedError
from hilora.serve.limits import Limits
from hilora.serve.openai import Guard, install_errors, routes
from hilora.types import Choice

WORDS = ("A ", "tale\u2028of ", "wörds 🙂")
KEY = "sesame"


def entry(name: str) -> Entry:
    return Entry(name, name[::-1] * 4, "s", 8, 2, 100, "base", 20, True, "2026-01-02T03:04:05Z")


def log(token: str) -> TokenLog:
    top = ((token, -0.5, token.encode()), ("other", float("-inf"), b"other"))
    return TokenLog(token, -0.5, token.encode(), top)


@dataclass
class FakeAnswering:
    desk: FakeDesk
    ask: Ask
    why: Why

    async def __aiter__(self) -> AsyncIterator[Piece | Done]:
        for answer in range(self.ask.answers):
            for word in self.desk.words if self.ask.follow else ():
                await asyncio.sleep(self.desk.pause)
                yield Piece(answer, word, self.logs([word]))
            if self.desk.stuck:
                await asyncio.Event().wait()
            if self.desk.fails:
                raise self.desk.fails
            text, words = "".join(self.desk.words), self.desk.words
            yield Done(answer, text, self.desk.finish, len(words), self.logs(words))

    def logs(self, words: Sequence[str]) -> tuple[TokenLog, ...]:
        return () if self.ask.top_logprobs is None else tuple(map(log, words))

    async def close(self) -> None:
        await asyncio.sleep(0)  # as one that has something to wait for
        self.desk.closed += 1


@dataclass
class FakeDesk:
    """Answers everything with the same words."""

    methods: Sequence[str] = ("hilora", "hilora-plus")
    opened: int = 1_700_000_000
    words: Sequence[str] = WORDS
    finish: str = "stop"
    names: Sequence[str] = ("sst2", "snli")
    pause: float = 0.0
    stuck: bool = False
    waits: bool = False
    refuses: Exception | None = None
    fails: Exception | None = None
    asked: list[Ask] = field(default_factory=list)
    closed: int = 0
    cancelled: int = 0

    async def answer(self, ask: Ask) -> FakeAnswering:
        why = await self.route(ask)
        try:
            if self.waits:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return FakeAnswering(self, ask, why)

    async def route(self, ask: Ask) -> Why:
        self.asked.append(ask)
        if self.refuses:
            raise self.refuses
        seen = [each.name for each in self.visible(ask.caller)]
        hashes = [each.hash for each in self.visible(ask.caller)]
        for name in (*(ask.allow or ()), *(() if ask.model in (AUTO, BASE) else (ask.model,))):
            if name not in seen + hashes:
                raise UnknownNameError("adapter", name, seen)
        used = [] if ask.model == BASE else seen
        choices = tuple(Choice(name, float("-inf"), 1 / (place + 1), 3, 8, True) for place, name in enumerate(used))
        return Why(ask.method or self.methods[0], choices, tuple(name[::-1] * 4 for name in used), "", 7, "e1", "5")

    async def look(self, ask: Ask) -> tuple[Why, Looked]:
        why = await self.route(ask)
        names = tuple(choice.name for choice in why.choices)
        tokens = ("ask", *(ask.answer or "").split())
        row = tuple(0.5 for _ in names)
        return why, Looked(tokens, 1, names, (row,) * len(tokens), (row,) * len(tokens))

    def visible(self, caller: Caller) -> Sequence[Entry]:
        return [entry(name) for name in self.names]


def who(request: Request) -> Caller:
    """The caller, by a token; without one he may use, too, so that most tests need none."""
    token = request.headers.get("authorization")
    if token == "Bearer looker":
        return Caller("", frozenset({"upload"}))
    if token not in (None, f"Bearer {KEY}"):
        raise UnauthorizedError("The token is not known.")
    return Caller("t")


def serve(desk: FakeDesk, limits: Limits) -> FastAPI:
    app = FastAPI(title="hilora")

    @app.post("/up/files", include_in_schema=False)
    async def upload(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/fails", include_in_schema=False)
    async def fail() -> None:
        raise RuntimeError("secret")

    app.include_router(routes(desk, limits, who))
    install_errors(app)
    app.add_middleware(Guard, limits=limits, uploads=["/up/"])
    return app


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
def limits() -> Limits:
    return replace(Limits(), body=100_000, upload=200_000)


@pytest.fixture
def app(desk: FakeDesk, limits: Limits) -> FastAPI:
    return serve(desk, limits)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as found:
        yield found


@pytest.fixture
def chat() -> Callable[..., dict[str, Any]]:
    """A chat request."""
    return lambda **given: {"model": "auto", "messages": [{"role": "user", "content": "Hello."}]} | given


@pytest.fixture
def server(app: FastAPI) -> Iterator[str]:
    """The application on a port of its own, and where."""
    import threading
    import time

    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    found = uvicorn.Server(config)
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    while not found.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{found.servers[0].sockets[0].getsockname()[1]}"
    found.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
