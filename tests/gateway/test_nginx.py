"""`examples/deployment/nginx.conf`, in a real nginx, keeps the promises of docs/vllm-deployment.md.

The gateways behind it are played: each writes down what it is asked, and does what the test says.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hilora.gateway.run import LIMITS
from tests.gateway.front import PATIENCE, nginx

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()


@dataclass
class Played:
    """Gateways, both at once: what they do with a request, and what they were asked."""

    does: Callable[[Handler], None]
    asked: list[Asked] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """One request, as a gateway got it; `port` is the gateway's."""

    port: int
    method: str
    headers: dict[str, str]
    body: str


class Handler(BaseHTTPRequestHandler):
    """A gateway's side of one connection."""

    protocol_version = "HTTP/1.1"
    played: Played

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        port = self.server.server_address[1]
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.played.asked.append(Asked(port, self.command, headers, sha256(body).hexdigest()))
        self.played.does(self)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def answer(self, status: int, **headers: str) -> None:
        """An empty object."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": "2"}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(b"{}")

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_piece(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    def die(self) -> None:
        """Leave without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """Says nothing of clients that left."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def gateway(played: Played) -> Iterator[str]:
    """Address of a played gateway."""
    handler = type("Own", (Handler,), {"played": played})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """An address that is taken, and at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def asking(
    port: int, path: str = CHAT, body: bytes | None = BODY, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """The beginning of an answer: a POST's, or without a body a GET's."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"} | sent)
        with connection.getresponse() as answer:
            yield answer
    finally:
        connection.close()


@pytest.fixture
def played() -> Played:
    return Played(lambda handler: handler.answer(200))


@pytest.fixture
def port(tmp_path: Path, played: Played) -> Iterator[int]:
    """Nginx in front of two gateways that live."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(gateway(played)) for _ in range(2))
        yield stack.enter_context(nginx(tmp_path, first, second))


def test_each_piece_of_a_stream_arrives_before_the_next_is_made(port: int, played: Played) -> None:
    had = [threading.Event() for _ in range(3)]
    in_time = []

    def stream(handler: Handler) -> None:
        handler.begin_stream()
        for number, each in enumerate(had):
            handler.send_piece(b"data: %d\n\n" % number)
            in_time.append(each.wait(PATIENCE / 3))
        handler.send_piece(b"")

    played.does = stream
    with asking(port) as answer:
        for number, each in enumerate(had):
            assert answer.readline() + answer.readline() == b"data: %d\n\n" % number
            each.set()
        assert answer.read() == b""
    assert in_time == [True] * 3


def test_an_answer_is_not_kept_for_a_client_that_does_not_read(port: int, played: Played) -> None:
    held = []

    def stream_much(handler: Handler) -> None:
        handler.connection.settimeout(0.5)
        handler.begin_stream()
        try:
            for _ in range(1024):  # 64 MB, which is more than all sockets on the way hold
                handler.send_piece(b"x" * (64 << 10))
        except TimeoutError:
            held.append(True)
        finally:
            handler.close_connection = True
            done.set()

    played.does, done = stream_much, threading.Event()
    with asking(port):
        assert done.wait(PATIENCE)
    assert held == [True]


def test_a_gateway_that_cannot_be_reached_fails_no_request(tmp_path: Path, played: Played) -> None:
    with nobody() as dead, gateway(played) as alive, nginx(tmp_path, dead, alive) as port:
        for _ in range(4):
            with asking(port) as answer:
                assert answer.status == 200
    assert [each.method for each in played.asked] == ["POST"] * 4
    assert {f"127.0.0.1:{each.port}" for each in played.asked} == {alive}


def test_a_post_is_not_sent_again_when_its_gateway_has_died_of_it(port: int, played: Played) -> None:
    played.does = Handler.die
    with asking(port) as answer:
        assert answer.status == 502
        assert json.load(answer)["error"]["code"] == "gateway_gone"
    assert len(played.asked) == 1


def test_a_request_that_both_gateways_have_died_of_keeps_nobody_from_the_next(port: int, played: Played) -> None:
    played.does = Handler.die
    for _ in range(2):
        with asking(port) as answer:
            assert answer.status == 502
    assert len({each.port for each in played.asked}) == 2
    played.does = lambda handler: handler.answer(200)
    with asking(port) as answer:
        assert answer.status == 200


def test_a_get_is_asked_of_the_other_gateway_when_one_has_died_of_it(port: int, played: Played) -> None:
    played.does = lambda handler: handler.die() if len(played.asked) == 1 else handler.answer(200)
    with asking(port, "/v1/models", None) as answer:
        assert answer.status == 200
    first, second = played.asked
    assert first.port != second.port


def test_who_asks_whether_one_is_ready_is_told_of_the_one_that_is(port: int, played: Played) -> None:
    played.does = lambda handler: handler.answer(503 if len(played.asked) == 1 else 200)
    with asking(port, "/readyz", None) as answer:
        assert answer.status == 200
    assert len(played.asked) == 2


def test_a_refusal_to_answer_a_post_is_the_answer(port: int, played: Played) -> None:
    played.does = lambda handler: handler.answer(503, Retry_After="7")
    with asking(port) as answer:
        assert (answer.status, answer.headers["Retry-After"], answer.read()) == (503, "7", b"{}")
    assert len(played.asked) == 1


def test_headers_pass_both_ways(port: int, played: Played) -> None:
    back = {"X_Hilora_Adapters": "a%2Cb,c", "X_Hilora_Method": "hilora-plus", "X_Request_Id": "req_1"}
    played.does = lambda handler: handler.answer(200, **back)
    with asking(port, Authorization="Bearer t", X_Request_Id="req_1", X_Hilora_Trace="x") as answer:
        assert {name: answer.headers[name.replace("_", "-")] for name in back} == back
    (got,) = played.asked
    expected = {"authorization": "Bearer t", "x-request-id": "req_1", "x-hilora-trace": "x"}
    assert {name: got.headers.get(name) for name in expected} == expected
    assert got.headers["host"] == f"127.0.0.1:{port}"


def test_bodies_pass_that_a_gateway_takes_and_no_larger_ones(port: int, played: Played) -> None:
    most = b"x" * LIMITS.body
    with asking(port, body=most) as answer:
        assert answer.status == 200
    assert [each.body for each in played.asked] == [sha256(most).hexdigest()]
    with asking(port, body=most + b"x") as answer:
        assert answer.status == 413
        assert json.load(answer)["error"]["code"] == "request_too_large"
    assert len(played.asked) == 1


def test_a_gateway_learns_that_its_client_has_left(port: int, played: Played) -> None:
    left = threading.Event()

    def stream_on(handler: Handler) -> None:
        handler.begin_stream()
        try:
            while True:
                handler.send_piece(b"data: more\n\n")
                time.sleep(0.01)
        except OSError:
            handler.close_connection = True
            left.set()

    played.does = stream_on
    with asking(port) as answer:
        assert answer.readline() == b"data: more\n"
    assert left.wait(PATIENCE)


def test_counts_of_one_gateway_are_not_shown_as_those_of_all(port: int, played: Played) -> None:
    with asking(port, "/metrics", None) as answer:
        assert answer.status == 404
    assert played.asked == []
