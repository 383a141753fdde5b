"""The benchmark of a server under load runs from start to end on something tiny. No speed is asserted."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from fastapi import Request

from hilora import HiLoRA
from hilora.serve.app import make_app
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.limits import Limits
from hilora.serve.listening import bound

ROOT = Path(__file__).parents[2]


def anybody(request: Request) -> Caller:
    return Caller()


def test_a_server_is_compared_with_an_offline_batch(
    scripts: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = scripts.load("benchmarks/serve.py")
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(copy.deepcopy(model), pool, "hilora", tokenizer=tokenizer, embedder=embedder)
    monkeypatch.setattr(script.HiLoRA, "from_pretrained", lambda *_, **__: router)

    @contextlib.contextmanager
    def server(args: Any) -> Iterator[tuple[str, psutil.Process]]:
        desk = PoolDesk(router, Limits())
        app = make_app(desk, Limits(), anybody)
        with bound("127.0.0.1", 0) as listening:
            running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
            thread.start()
            while not running.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", psutil.Process()
            running.should_exit = True
            thread.join()

    monkeypatch.setattr(script, "server", server)
    out = tmp_path / "serve.jsonl"
    small = ["--batch", 4, "--clients", 2, "--rates", 0.5, "--arrivals", 3, "--words", 3, "--new-tokens", 3]
    for rounds in (1, 2):
        scripts.run(script, "--pool", pool.path, *small, "--rounds", rounds, "--json", out)
    _, *found = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted((line["way"], line["round"]) for line in found) == sorted(
        [(way, number) for way in ("desk", "http", "stream", "base") for number in (0, 1)] + [("poisson", 0)]
    )
    assert all(line["of_offline"] > 0 for line in found)
    assert all(0 <= line["client_share"] <= 1 for line in found if line["way"] != "desk")


@pytest.mark.default
def test_uploads_to_a_server_are_timed_idle_and_at_work(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = scripts.load("benchmarks/uploads.py")
    monkeypatch.setattr(script, "QUIET", 0.5)
    pool, out = tmp_path / "pool", tmp_path / "uploads.jsonl"
    shutil.copytree(ROOT / "pools" / "flan-mini", pool, copy_function=os.link, ignore=shutil.ignore_patterns("serve"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    small = ["--adapters", 4, "--rows", 2, "--new-tokens", 8, "--times", 1, "--port", port]
    for _ in range(2):  # what is there is not measured again
        scripts.run(script, "--pool", pool, *small, "--json", out)
    _, *found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["what"] for line in found] == ["idle", "at work"]
    assert all(line["routable_s"]["median"] > line["live_s"]["median"] > 0 for line in found)
    assert found[1]["step_ratio"]["median"] > 0
