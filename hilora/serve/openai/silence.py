"""Silences between what comes one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def with_silences(items: AsyncIterator[T], seconds: float) -> AsyncGenerator[T | None, None]:
    """Items as they come, and a None whenever none has come for so many seconds; what fails is raised.

    The wait for an item goes on through the None. Close it (`contextlib.aclosing`): that ends the wait.
    """
    coming: asyncio.Future[T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait((coming,), timeout=seconds)
            if not done:
                yield None
                continue
            came, coming = coming, None
            try:
                item = came.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
