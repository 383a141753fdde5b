"""What every request passes first: its bounds, an id, and headers that browsers obey."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hilora.serve.faults import TooLargeError
from hilora.serve.limits import Limits
from hilora.serve.openai.errors import FAILED, Told, error_of, told

CLOSED = "default-src 'none'; frame-ancestors 'none'"
SHOWN = (
    "default-src 'none'; frame-ancestors 'none'; connect-src 'self'; img-src data: https://fastapi.tiangolo.com; "
    "script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net"
)
UPLOADS = ("/v1/adapters",)
PAGES = {"/docs": SHOWN}
"""Pages for people, and what a browser may load for them."""
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
log = logging.getLogger(__name__)
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids of requests that clients may give."""
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
ALL_ONE = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(body: bytes, depth: int) -> bool:
    """Whether JSON holds more than so many brackets inside each other; what is no JSON may be either.

    In time linear in its length, and without a parser: those give up, or worse, at depths of their own.
    """
    brackets = STRING.sub(b"", body).translate(ALL_ONE, NO_BRACKETS)
    for _ in range(depth):  # the innermost of each nest go
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or len(brackets) > depth


class Guard:
    """ASGI middleware.

    Args:
        app: whatever is behind it.
        limits: bytes of headers and bodies, depth of JSON.
        uploads: paths below which bodies other than JSON are files: these are not held in memory, and
            `limits.upload` bounds them.
        pages: path -> Content-Security-Policy, where a page is shown; nothing is, elsewhere.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, uploads: Sequence[str] = UPLOADS, pages: Mapping[str, str] = PAGES
    ) -> None:
        self.app, self.limits, self.uploads, self.pages = app, limits, tuple(uploads), pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        name = given.get("x-request-id", "")
        name = name if ID.fullmatch(name) else f"req_{uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name
        begun, unread = False, bool(given.get("transfer-encoding")) or given.get("content-length", "0") != "0"

        async def take() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body"))
            return message

        async def send_safely(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                policy = self.pages.get(scope["path"], CLOSED)
                for key, value in (SAFE | {"Content-Security-Policy": policy}).items():
                    headers.setdefault(key, value)
                headers["X-Request-Id"] = name
                if unread:  # nor will it be: the next request on this connection would not be understood
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._pass(scope, given, take, send_safely)
        except TooLargeError as error:
            await error_of(error).response(scope, receive, send_safely)
        except ClientDisconnect:
            log.info("The client of request %s has left.", name)
        except Exception:
            log.error("Request %s failed.", name)  # why, the server logs that it runs in
            if not begun:
                failed = told(HTTPStatus.INTERNAL_SERVER_ERROR, FAILED, "server_error", "internal_error")
                await failed.response(scope, receive, send_safely)
            raise

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        refused = self._check_headers(headers)
        as_json = "json" in headers.get("content-type", "")
        upload = not as_json and scope["path"].startswith(self.uploads)
        most = self.limits.upload + self.limits.body if upload else self.limits.body  # with what stands between files
        if refused is None and int(headers.get("content-length") or 0) > most:
            raise _too_large(most)
        if refused is None and upload:
            receive = _counted(receive, most)
        elif refused is None:
            body = await _read(receive, most)
            if body is None:
                return
            if as_json and too_deep(body, self.limits.depth):
                message = f"The JSON is nested deeper than {self.limits.depth}, or does not close what it opens."
                refused = told(HTTPStatus.BAD_REQUEST, message, code="invalid_json")
            receive = _again(body, receive)
        await (refused.response if refused else self.app)(scope, receive, send)

    def _check_headers(self, headers: Headers) -> Told | None:
        size = sum(len(key) + len(value) for key, value in headers.raw)
        if size > self.limits.header:
            message = f"The headers have {size} bytes; at most {self.limits.header} are taken."
            return told(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, code="headers_too_large")
        if not headers.get("content-length", "0").isdecimal():
            return told(HTTPStatus.BAD_REQUEST, "Content-Length is no number.", code="invalid_value")
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may have read another request
            message = "Content-Length and Transfer-Encoding are given; one of them is expected."
            contradicting = told(HTTPStatus.BAD_REQUEST, message, code="invalid_value")
            contradicting.headers["Connection"] = "close"
            return contradicting
        coding = headers.get("content-encoding", "identity")
        if coding != "identity":
            message = f"The body is encoded as {coding!r:.40}; send it as it is."
            return told(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")
        return None


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"The body has more than {most} bytes, which is the most that is taken here.")


async def _read(receive: Receive, most: int) -> bytes | None:
    """A whole body; None where the client leaves before its end."""
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > most:
            raise _too_large(most)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read again."""
    left = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replay


def _counted(receive: Receive, most: int) -> Receive:
    """A body that is refused once it is too large."""
    size = 0

    async def count() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, str(_too_large(most)))  # whoever reads files makes a 400 of others
        return message

    return count
