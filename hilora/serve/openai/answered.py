"""A prompt answered as long as somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from typing import Any, TypeVar

from starlette.types import Receive

from hilora.errors import UnknownNameError
from hilora.serve.asked import AUTO, BASE, Answering, Answers, Ask, Done
from hilora.serve.faults import MissingError, ServiceError

T = TypeVar("T")


class GoneError(Exception):
    """The client has left."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What work gives; it is cancelled when the client leaves, and has ended when this returns.

    Args:
        receive: the request's, whose body was read.
        work: for the client.

    Raises:
        GoneError: the client has left.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise GoneError("The client has left before its answer was complete.")
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def answered(desk: Answers, ask: Ask) -> AsyncIterator[Answering]:
    """The answers to what is asked; closed in the end, however it comes.

    Raises:
        MissingError: the caller sees no such model.
        HiloraError: what else the desk refuses.
    """
    with in_its_words(ask):
        answering = await desk.answer(ask)
    try:
        yield answering
    finally:
        await answering.close()


async def whole(desk: Answers, ask: Ask) -> tuple[Answering, list[Done]]:
    """All answers at once; raises as `answered`."""
    async with answered(desk, ask) as answering:
        return answering, [came async for came in answering if isinstance(came, Done)]


@contextmanager
def in_its_words(ask: Ask) -> Iterator[None]:
    """Errors of the desk in the words of the request.

    A name that the desk does not know is the model's, where one is named: nothing else is then. And the desk calls
    the prompt "messages", whatever it came as.
    """
    try:
        yield
    except UnknownNameError as error:
        if ask.model in (AUTO, BASE):
            raise
        raise MissingError(str(error), "model_not_found", "model") from error
    except MissingError as error:
        if ask.model not in (AUTO, BASE):
            raise
        raise ServiceError(str(error), "invalid_value", "hilora.allow") from error  # no other names are given then
    except ServiceError as error:
        if error.param != "messages" or not isinstance(ask.prompt, str):
            raise
        own = copy(error)  # others may be told the same one
        own.param = "prompt" if ask.raw else "input"
        raise own from error
