"""`kill -9` of a whole server: the next one on the same pool goes on, and nothing is lost or left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.serve.state import State

SECRET = "sesquipedalian"
DATA = ("adapters", "canonical", "samples")
PROMPT = {"prompt": "abab baab abba", "temperature": 0, "max_tokens": 12, "hilora": {"explain": True}}


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


class Server:
    """`hilora serve` in a process of its own, over the bench's pool.

    Args:
        bench: makes pools and uploads.
    """

    def __init__(self, bench: Any) -> None:
        self.bench, self.pool = bench, bench.pool.path
        self.base = bench.home / "base"
        if not self.base.exists():
            bench.tiny.model("llama").save_pretrained(self.base)
            bench.tiny.tokenizer().save_pretrained(self.base)
        self.log, self.client = (bench.home / "log").open("a+"), httpx2.Client()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "hilora", "serve", "--pool", str(self.pool), "--base", str(self.base)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--method", "hilora"],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"COLUMNS": "300"},
        )
        assert self.process.stdout is not None
        with self.process.stdout as out:
            found = re.search(r"http://\S+:\d+", out.readline())
        assert found, Path(self.log.name).read_text()[-2000:]
        self.client.close()
        self.client = httpx2.Client(base_url=found[0], timeout=60)

    def kill(self) -> None:
        """As a machine that runs out of memory does."""
        self.process.kill()
        self.process.wait(30)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def checks(self) -> list[psutil.Process]:
        """The processes that check uploads, or wait to."""
        found = psutil.Process(self.process.pid).children()
        return [each for each in found if "hilora.serve.check" in each.cmdline()]

    def send(self, name: str, seed: int, wait: int = 0) -> Any:
        texts = [f"{SECRET} {text}" for text in self.bench.texts("delta", seed)]
        files = self.bench.form(seed, samples="\n".join(texts).encode())
        return self.client.post(f"/v1/adapters?wait={wait}", files=files, data={"name": name})

    def look(self, name: str) -> Any:
        return self.client.get(f"/v1/adapters/{name}").json()

    def ask(self, model: str) -> Any:
        return self.client.post("/v1/completions", json=PROMPT | {"model": model}).json()

    def holding(self, word: str) -> list[Path]:
        """Files below the pool in which a word stands."""
        found = []
        for path in self.pool.rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):
                found += [path] if word.encode() in path.read_bytes() else []
        return found

    def data(self) -> set[Path]:
        """What the pool keeps of adapters."""
        return {path for folder in DATA for path in (self.pool / folder).glob("*")}


@pytest.fixture
def server(bench: Any) -> Iterator[Server]:
    made = Server(bench)
    yield made
    if made.process.poll() is None:
        made.kill()
    made.client.close()
    made.log.close()


def check_well(server: Server, *live: str) -> None:
    """A server that came after a killed one takes requests, and nothing of that one lies about."""
    ready = server.client.get("/readyz").json()
    assert (ready["status"], ready["waiting"], ready["running"]) == ("ready", 0, 0)
    assert len(holders(server.pool)) == len(list((server.pool / "leases").iterdir())) == 1
    assert server.holding(SECRET) == []
    assert State(server.pool).open_uploads() == []
    for name in ("alpha", *live):
        part = server.look(name)
        answer = server.ask(name)
        assert [each["hash"] for each in answer["hilora"]["adapters"]] == [part["hash"]]
        assert answer["choices"][0]["finish_reason"]
    assert server.ask("auto")["hilora"]["adapters"]


def check_whole(server: Server) -> None:
    """When it has ended, nothing is wrong with the pool, and nothing of an adapter is to be deleted."""
    assert server.end() == 0
    pool = Pool.open(server.pool)
    assert [entry.name for entry, wrong in pool.check() if wrong] == []
    assert [path for path in pool.prune() if path.parent.name in DATA] == []  # epochs follow each other
    assert holders(server.pool) == []
    assert server.bench.left() == []
    assert list(server.pool.rglob(".partial-*")) == []


def opened(server: Server, model: str) -> Any:
    """Lines of an answer that has begun."""
    given = PROMPT | {"model": model, "max_tokens": 200, "stream": True}
    request = server.client.build_request("POST", "/v1/completions", json=given)
    lines = server.client.send(request, stream=True).iter_lines()
    assert json.loads(next(lines).removeprefix("data: "))["choices"]
    return lines


def is_cut(lines: Any) -> bool:
    """Whether an answer breaks off."""
    try:
        return "data: [DONE]" not in list(lines)
    except httpx2.HTTPError:
        return True


def test_whenever_a_server_is_killed_the_next_one_goes_on(server: Server) -> None:
    want, before = server.ask("alpha")["choices"], server.data()

    (check,) = server.checks()
    check.suspend()  # while a check runs, and answers stream
    sent = server.send("new", 7)
    assert sent.status_code == 202
    until(lambda: server.look("new")["state"] == "checking")
    streams = [opened(server, model) for model in ("auto", "base", "alpha", "beta")]
    assert server.holding(SECRET)
    server.kill()
    assert sum(is_cut(lines) for lines in streams) > 0
    check.resume()
    until(lambda: not check.is_running())
    assert server.data() == before
    server.start()
    told = server.look("new")
    assert (told["state"], told["upload"]["id"]) == ("refused", sent.json()["id"])
    assert "interrupted" in told["reason"]
    assert server.ask("alpha")["choices"] == want
    check_well(server)

    sent = server.send("new", 7, wait=60)
    assert sent.status_code == 201
    server.kill()  # when whoever sent it has just heard that it is live
    server.start()
    check_live(server, "new", sent)
    check_well(server, "new")

    sent = server.send("other", 8)
    until(lambda: '"name": "other"' in (server.pool / "pool.json").read_text())
    server.kill()  # when the manifest names it, and nobody has been told
    server.start()
    check_live(server, "other", sent)
    check_well(server, "new", "other")
    check_whole(server)


def check_live(server: Server, name: str, sent: Any) -> None:
    """An upload, and the adapter that it has become."""
    told = server.look(name)
    (entry,) = [each for each in Pool.open(server.pool).entries if each.name == name]
    assert (told["state"], told["hash"], told["upload"]["hash"]) == ("live", entry.hash, entry.hash)
    assert (told["upload"]["state"], told["upload"]["id"]) == ("live", sent.json()["id"])
