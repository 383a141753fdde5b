"""Slow and odd clients, by raw sockets: each is ended, and others are served meanwhile."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hilora.serve import connections
from hilora.serve.connections import FEWEST, OTHERS, Watched, room
from hilora.serve.listening import config_of

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
Start = Callable[..., "Running"]


class Running:
    """A server in a thread, and raw clients of it."""

    def __init__(self, server: Watched) -> None:
        self.server = server

    @contextmanager
    def client(self, sent: bytes = b"", *, narrow: bool = False) -> Iterator[socket.socket]:
        with socket.socket() as made:
            made.settimeout(20)
            if narrow:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(self.server.servers[0].sockets[0].getsockname())
            made.sendall(sent)
            yield made

    def holds(self, count: int) -> bool:
        """Whether it comes to hold so many connections."""
        return waited(lambda: len(self.server.server_state.connections) == count)


def whole(client: socket.socket) -> bytes:
    got = b""
    while part := client.recv(65536):
        got += part
    return got


def waited(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def error_of(client: socket.socket) -> tuple[int, str]:
    """Status and code of the error that comes."""
    got = b""
    while not got.endswith(b"}}"):
        part = client.recv(65536)
        assert part, got
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def start(app: Any, limits: Any) -> Iterator[Start]:
    started = []

    def run(**changed: Any) -> Running:
        config = config_of(
            app, replace(limits, patience=0.6, rate=1000) if not changed else replace(limits, **changed)
        )
        config.host, config.port, config.lifespan = "127.0.0.1", 0, "off"
        server = Watched(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert waited(lambda: server.started)
        started.append((server, thread))
        return Running(server)

    yield run
    for server, thread in started:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (HEAD, (408, "request_timeout")),
        (HEAD + b"Content-Length: 50\r\n\r\n{", (408, "request_timeout")),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{", (408, "request_timeout")),
        (MODELS.replace(b"\r\n\r\n", b"\r\nX-Slow: "), (408, "request_timeout")),
    ],
)
def test_who_sends_too_slowly_is_told_and_ended(start: Start, sent: bytes, answer: Any, desk: Any) -> None:
    running = start()
    with running.client(sent) as slow:
        ended = threading.Event()

        def dribble() -> None:
            while not ended.wait(0.05):
                try:
                    slow.send(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            assert error_of(slow) == answer
        finally:
            ended.set()
            thread.join()
    assert running.holds(0)
    assert desk.asked == []


def test_who_says_nothing_is_ended_in_silence(start: Start) -> None:
    with start().client() as client:
        assert whole(client) == b""


def test_a_body_that_comes_slowly_but_steadily_is_taken(start: Start, chat: Any) -> None:
    body = json.dumps(chat(user="x" * 3000)).encode()
    running = start()
    with running.client(HEAD + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()) as client:
        for place in range(0, len(body), 100):
            client.sendall(body[place : place + 100])
            time.sleep(0.05)
        assert whole(client).startswith(b"HTTP/1.1 200")


def test_who_does_not_read_is_ended_with_his_answer(start: Start, desk: Any, chat: Any) -> None:
    desk.words = ("x" * 1_000_000,) * 30
    body = json.dumps(chat(stream=True)).encode()
    running = start()
    with running.client(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body, narrow=True) as client:
        assert client.recv(1)
        assert waited(lambda: desk.closed == 1)
        assert running.holds(0)


def test_what_is_left_of_a_body_that_was_refused_is_not_waited_for(start: Start) -> None:
    running = start()
    with running.client(HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 900\r\n\r\n") as client:
        client.sendall(b"x")
        assert error_of(client)[0] == 408
    sent = HEAD + b"Content-Encoding: gzip\r\nContent-Length: 900\r\n\r\n"
    with running.client(sent) as client:
        assert error_of(client)[0] == 415
        assert client.recv(100) == b""  # uvicorn by itself would wait for ever


def test_two_ways_of_saying_where_a_body_ends_are_refused(start: Start) -> None:
    sent = HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + MODELS
    with start().client(sent) as client:
        assert error_of(client) == (400, "invalid_value")
        assert client.recv(100) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnope\r\n",
        b"x" * 100_000,
    ],
)
def test_what_is_not_http_is_refused_in_the_form_of_others(
    start: Start, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    with running.client() as client:
        client.sendall(sent)
        assert error_of(client) == (400, "invalid_request")
    assert running.holds(0)
    assert "Traceback" not in caplog.text


def test_rubbish_behind_an_answer_that_is_under_way_ends_it(
    start: Start, desk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    desk.stuck = True
    running = start(patience=60.0)
    with running.client(MODELS) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"rubbish\r\n\r\n")
        assert error_of(client) == (400, "invalid_request")
    assert running.holds(0)
    assert "Traceback" not in caplog.text


def test_where_there_are_too_many_who_asks_for_nothing_goes_first(
    start: Start, desk: Any, chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.stuck = True
    body = json.dumps(chat()).encode()
    asking = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    running = start(connections=3)
    with running.client(HEAD) as idle:
        assert running.holds(1)
        monkeypatch.setattr(connections, "YOUNG", 0.0)
        with running.client(asking), running.client(asking):
            assert waited(lambda: len(desk.asked) == 2)
            with running.client(asking):
                assert waited(lambda: len(desk.asked) == 3)
                assert idle.recv(10) == b""
                with running.client() as late:
                    assert error_of(late) == (503, "overloaded")
    assert running.holds(0)


def test_connections_leave_room_for_other_files() -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert room(10 * files, 20) == files - 20 - OTHERS
    assert room(5, 20) == 5
    assert room(1000, files) == FEWEST
