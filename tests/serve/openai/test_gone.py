"""Clients that leave end what was done for them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hilora.serve.openai import stream as streams
from hilora.serve.openai.answered import GoneError, while_there

pytestmark = pytest.mark.anyio


async def leave(app: Any, given: Any, after: int) -> list[Any]:
    """Ask, and leave after so many pieces have come, or at once while nothing comes; what came."""
    body = [{"type": "http.request", "body": json.dumps(given).encode(), "more_body": False}]
    gone, sent = asyncio.Event(), list[Any]()
    scope = {
        "type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("c", 1), "server": ("s", 80),
    }  # fmt: skip

    async def receive() -> Any:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > after:
            gone.set()

    if not after:
        asyncio.get_running_loop().call_later(0.05, gone.set)
    async with asyncio.timeout(20):
        await app(scope, receive, send)
    return sent


async def test_who_leaves_while_pieces_come_ends_them(app: Any, desk: Any, chat: Any) -> None:
    desk.stuck = True
    sent = await leave(app, chat(stream=True), after=2)
    assert desk.closed == 1
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_anything_came_ends_it(app: Any, desk: Any, chat: Any, stream: bool) -> None:
    desk.stuck, desk.words = True, ()
    await leave(app, chat(stream=stream), after=0)
    assert desk.closed == 1


async def test_who_leaves_during_silence_ends_it(
    app: Any, desk: Any, chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SILENCE", 0.005)
    desk.stuck, desk.words = True, ()
    before = asyncio.all_tasks()
    sent = await leave(app, chat(stream=True), after=4)
    assert [message["body"] for message in sent[2:4]] == [streams.COMMENT] * 2
    assert desk.closed == 1
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_queue_waits_no_more(app: Any, desk: Any, chat: Any, stream: bool) -> None:
    desk.waits = True
    await leave(app, chat(stream=stream), after=0)
    assert (desk.cancelled, desk.closed) == (1, 0)


async def test_who_leaves_in_an_upload_is_no_failure_of_the_server(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scope = {
        "type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/up/files", "raw_path": b"/up/files", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"multipart/form-data")], "client": ("c", 1), "server": ("s", 80),
    }  # fmt: skip
    coming: list[Any] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> Any:
        return coming.pop()

    async def send(message: Any) -> None:
        pytest.fail(str(message))

    await app(scope, receive, send)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_work_has_ended_when_its_caller_goes_on() -> None:
    ended = []

    async def work() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)
        return 1

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(GoneError):
        await while_there(gone, work())
    assert ended == [True]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await while_there(never, work())
    assert ended == [True, True]
