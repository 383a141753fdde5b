"""A backend is asked once: its answer is passed on as it is, or it is said that there was none.

A whole answer is read to its end before a byte of it is passed on, so it can always be asked for again. A stream is
passed on event by event; until its first one with data it can be, too. One that breaks off later is an error.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing

from hilora.gateway.backend import Backend
from hilora.gateway.connections import Answer
from hilora.gateway.job import Job, Out
from hilora.gateway.told import DownError, LostError, is_failure, is_unknown_model
from hilora.serve.faults import ServiceError

RETRIED = (500, 502, 503, 504)
"""Statuses that another backend may not answer with."""
ENDS = (b"\n\n", b"\r\n\r\n")
DONE = b"data: [DONE]"
LONG = 1 << 20
"""Bytes of an event that are held back, at most."""


class ForgottenError(Exception):
    """The backend does not know the model: it was started again, or somebody else has unloaded the adapter."""


class BrokenError(ServiceError):
    """The backend was lost in the middle of a stream."""

    status, type = 502, "server_error"

    def __init__(self) -> None:
        super().__init__("The backend was lost in the middle of the answer. Ask again.", "backend_lost")


async def exchange(backend: Backend, job: Job, out: Out) -> None:
    """Ask, and pass the answer on.

    Raises:
        ForgottenError: the backend does not know the model.
        DownError: it did not answer, or failed before the client heard a word.
        BrokenError: it failed later.
    """
    body, content = job.body(job.name or backend.models.base), None
    try:
        async with backend.followed():
            with job.clock.at("backend"):
                answer = await backend.post(job.path, body, f"{job.request}-{secrets.token_hex(4)}")
            try:
                if answer.status == 200 and answer.kind.startswith("text/event-stream"):
                    await _stream(backend, job, answer, out)
                else:
                    with job.clock.at("backend"):
                        content = await answer.whole()
            finally:
                answer.close()
            if content is not None:
                _check(backend, answer, content)
    except DownError as error:
        if isinstance(error, LostError):
            backend.failed()
        if out.told:
            raise BrokenError from error
        raise
    backend.worked()
    if content is None:  # the last word comes last: then the client may leave
        await out.end()
    else:
        await out.whole(answer.status, answer.kind, content)


def _check(backend: Backend, answer: Answer, content: bytes) -> None:
    """Refuse what is no answer of the backend's own."""
    status = answer.status
    if is_unknown_model(status, content):
        raise ForgottenError
    if status in (401, 403):
        backend.failed()
        raise DownError(f"backend {backend.place} refuses the gateway's key: set HILORA_BACKEND_KEY")
    if status in RETRIED:
        if status != 500:  # of a balancer in front of it, or of an engine that is dead
            backend.failed()
        raise DownError(f"status {status}", status, content, answer.kind)


async def _stream(backend: Backend, job: Job, answer: Answer, out: Out) -> None:
    """Pass on all but the end."""
    held, ended = b"", False
    async with aclosing(aiter(answer)) as chunks:
        while (chunk := await _next(chunks, job)) is not None:
            backend.heard()
            whole, held = _split(held + chunk)
            if not whole:
                continue
            if not out.told and (first := _first(whole)) and is_failure(first):
                raise DownError("the engine failed")
            await out.events(whole)
            ended = DONE in whole[-32:]
    if held or not ended:
        raise DownError("the stream ended before its end")


async def _next(chunks: AsyncIterator[bytes], job: Job) -> bytes | None:
    with job.clock.at("backend"):
        return await anext(chunks, None)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Whole events, and the beginning of the next one."""
    end = max(data.rfind(end) + len(end) if end in data else 0 for end in ENDS)
    return (data, b"") if not end and len(data) > LONG else (data[:end], data[end:])


def _first(events: bytes) -> bytes:
    """The first line with data; b"" where there are comments alone."""
    return next((line for line in events.splitlines() if line.startswith(b"data:")), b"")
