"""A stream that has nothing to say yet says so, and nothing else changes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from hilora.serve.faults import LateError
from hilora.serve.openai import stream
from hilora.serve.openai.silence import with_silences

pytestmark = pytest.mark.anyio
OWN = re.compile(rb'"(id|created)":[^,]+')
"""What no two answers share."""


async def body(client: Any, path: str, given: Any) -> bytes:
    return OWN.sub(b"", (await client.post(path, json=given | {"stream": True, "seed": 1})).content)


@pytest.mark.parametrize("fails", [None, LateError("Too late.")])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_without_its_comments_a_slow_stream_is_the_quick_one(
    client: Any, desk: Any, chat: Any, path: str, fails: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.fails = fails
    given = chat(n=2, logprobs=True) if "chat" in path else {"prompt": "Hi", "logprobs": 1, "n": 2}
    quick = await body(client, path, given)
    assert stream.COMMENT not in quick
    monkeypatch.setattr(stream, "SILENCE", 0.005)
    desk.pause = 0.02
    slow = await body(client, path, given)
    assert slow.count(stream.COMMENT) >= len(desk.words)
    assert slow.replace(stream.COMMENT, b"") == quick
    assert not slow.endswith(stream.COMMENT)
    assert desk.closed == 2


def test_it_is_a_comment_and_no_event() -> None:
    assert re.fullmatch(rb":[^\r\n]*\n\n", stream.COMMENT)


async def test_a_wait_for_an_item_goes_on_through_silences_and_ends_with_who_waits() -> None:
    ended, before = list[str](), asyncio.all_tasks()

    async def items() -> AsyncIterator[int]:
        try:
            for number in range(3):
                await asyncio.sleep(0.02)
                yield number
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    came = list[int | None]()
    async with aclosing(with_silences(items(), 0.005)) as coming:
        async for item in coming:
            came.append(item)
            if came[-1] is None and 2 in came:
                assert not ended
                break
    assert [item for item in came if item is not None] == [0, 1, 2]
    assert came[0] is None
    assert ended == ["cancelled"]
    assert asyncio.all_tasks() == before
