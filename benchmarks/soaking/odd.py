"""What is hardly HTTP, or not at all; and what may come for it."""

from __future__ import annotations

import json

from soaking.made import PROMPT
from soaking.raw import FORM, head, request

CLOSE = b"Connection: close"
CHUNKED = b"Transfer-Encoding: chunked"
BODY = json.dumps(PROMPT | {"model": "alpha"}).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
ASKED = request("/v1/completions", PROMPT | {"model": "alpha"})
STREAMED = request("/v1/completions", PROMPT | {"model": "alpha", "stream": True})
REFUSED = {(400,)}


def get(*headers: bytes, path: str = "/v1/models") -> bytes:
    """Look at something."""
    return head(path, *headers, method=b"GET") + b"\r\n"


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """Ask something."""
    return head("/v1/completions", *headers) + b"\r\n" + body


def plain(*lines: bytes, end: bytes = b"\r\n") -> bytes:
    """A request of these lines."""
    return end.join([*lines, b"", b""])


LAST, HOST = get(CLOSE, path="/healthz"), b"Host: localhost"
MANY = [b"X-%d: a" % number for number in range(9000)]
UPGRADE = [b"Upgrade: websocket", b"Connection: upgrade", b"Sec-WebSocket-Key: YQ==", b"Sec-WebSocket-Version: 13"]
UPLOADED = head("/v1/adapters", CHUNKED, kind=FORM) + b"\r\nA\r\n--edge\r\nCo\r\nzz\r\n"
ODD: dict[str, tuple[bytes, set[tuple[int, ...]]]] = {
    "two in a packet": (ASKED + LAST, {(200, 200)}),
    "fifty in a packet": (get() * 49 + LAST, {(200,) * 50}),
    "streams and others": (STREAMED + STREAMED + ASKED + LAST, {(200,) * 4}),
    "continue": (post(LENGTH, b"Expect: 100-continue", CLOSE, body=BODY), {(100, 200), (200,)}),
    "HTTP/1.0": (plain(b"GET /v1/models HTTP/1.0", HOST), {(200,)}),
    "trailers": (post(CHUNKED, CLOSE, body=CHUNK + b"X-Trailer: a\r\n\r\n"), {(200,)}),
    "chunk extensions": (post(CHUNKED, CLOSE, body=CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"\r\n"), {(200,)}),
    "a length and chunks": (post(LENGTH, CHUNKED, body=CHUNK + b"\r\n"), REFUSED),
    "two lengths": (post(LENGTH, b"Content-Length: 3", body=BODY), REFUSED),
    "a length that is none": (post(b"Content-Length: +3", body=BODY), REFUSED),
    "an unknown coding": (post(b"Transfer-Encoding: chunked, gzip"), {(400,), (501,)}),
    "a chunk that is none": (post(CHUNKED, body=b"zz\r\n"), REFUSED),
    "a huge chunk": (post(CHUNKED, body=b"f" * 30 + b"\r\n"), REFUSED),
    "an absolute target": (plain(b"GET http://localhost/healthz HTTP/1.1", HOST, CLOSE), {(200,), (404,)}),
    "a target that is none": (plain(b"GET * HTTP/1.1", HOST, CLOSE), {(404,), (400,)}),
    "no host": (plain(b"GET /healthz HTTP/1.1"), REFUSED),
    "two hosts": (plain(b"GET /healthz HTTP/1.1", HOST, HOST), REFUSED),
    "many headers": (get(*MANY[:1500], CLOSE), {(200,), (431,)}),
    "more headers": (get(*MANY, CLOSE), {(400,), (431,)}),
    "a line without end": (b"GET /" + b"a" * 200_000, REFUSED),
    "NUL": (plain(b"GET /\0 HTTP/1.1", HOST), REFUSED),
    "NUL in a header": (get(b"X: \0"), REFUSED),
    "bare line feeds": (plain(b"GET /healthz HTTP/1.1", HOST, CLOSE, end=b"\n"), {(200,), (400,)}),
    "a folded line": (get(b"X: a", b"  b", CLOSE), {(200,), (400,)}),
    "a space before the colon": (get(b"X : a"), REFUSED),
    "TLS": (bytes.fromhex("16030100ba010000b60303") + b"\0" * 180, REFUSED),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {(400,), (403, 400)}),
    "an upgrade": (get(*UPGRADE) + LAST, {(200, 200)}),
    "rubbish behind a request": (get() + b"\0\r\n\r\n", {(200, 400)}),
    "rubbish behind a stream": (STREAMED + b"\0\r\n\r\n", {(200, 400)}),
    "rubbish in an upload": (UPLOADED, REFUSED),
    "a smuggled request": (post(b"Content-Length: %d" % len(LAST), CLOSE, body=LAST), REFUSED),
}
"""Name -> what is sent, and the statuses that may come."""
