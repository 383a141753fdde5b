"""A gateway in a thread over a tiny pool, in front of stand-ins of vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from hilora.gateway.run import LIMITS, Draining, Gateway, Settings
from hilora.pool.pool import Pool
from hilora.serve.listening import bound, config_of
from tests.gateway.fake import FakeVllm, Knobs


class Running:
    """A gateway that serves, in a thread of its own.

    Args:
        pool: that it routes over.
        settings: of it.
        embedder: the pool's.
    """

    def __init__(self, pool: Any, settings: Settings, embedder: Any) -> None:
        self.said: list[str] = []
        self.ready = threading.Event()
        self.failed: BaseException | None = None
        self.listening = bound(settings.host, 0)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.gateway: Gateway
        self.server: uvicorn.Server
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(pool, settings, embedder)), name="gateway under test"
        )
        self.thread.start()
        self.ready.wait(60)
        if self.failed is not None:
            self.thread.join()
            raise self.failed
        self.client = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)

    async def _serve(self, pool: Any, settings: Settings, embedder: Any) -> None:
        try:
            self.gateway = Gateway(pool, settings, embedder)
            try:
                await self.gateway.open(self.said.append)
            except BaseException:
                await self.gateway.close()
                raise
            self.server = Draining(config_of(self.gateway.app, settings.limits), self.gateway)
            self.server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self.failed = error
            self.listening.close()
            self.ready.set()
            return
        self.ready.set()
        await self.server.serve(sockets=[self.listening])

    def ask(self, text: str = "aaa abab", model: str = "auto", **fields: Any) -> httpx2.Response:
        """A chat."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def says(self, *args: Any, **fields: Any) -> str:
        """The text of an answer."""
        found = self.ask(*args, **fields)
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["message"]["content"])

    def number(self, name: str, **labels: str) -> float:
        """One of its metrics."""
        found = self.gateway.meters.registry.get_sample_value(f"hilora_gateway_{name}", labels)
        return 0.0 if found is None else found

    def wait(self, is_so: Callable[[], object], seconds: float = 20) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.01)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.client.close()
        self.listening.close()


@pytest.fixture
def fakes() -> Iterator[Callable[..., FakeVllm]]:
    made: list[FakeVllm] = []

    def make(**knobs: Any) -> FakeVllm:
        made.append(FakeVllm(Knobs(**knobs)))
        return made[-1]

    yield make
    for fake in made:
        if fake.knobs.hold is not None:
            fake.knobs.hold.set()
        if fake.thread.is_alive():
            fake.kill()


@pytest.fixture
def pool(tmp_path: Path, tiny: Any, shared_pool: Any) -> Pool:
    """A pool of the test's own: four tasks, ranks 2 to 6."""
    _, shared = shared_pool("llama")
    shutil.copytree(shared.path, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


@pytest.fixture
def opened(tmp_path: Path, pool: Pool, embedder: Any) -> Iterator[Callable[..., Running]]:
    """Makes gateways."""
    with ExitStack() as stack:

        def make(*backends: FakeVllm | str, limits: dict[str, Any] | None = None, **settings: Any) -> Running:
            urls = [each if isinstance(each, str) else each.url for each in backends]
            bounds = replace(LIMITS, **{"deadline": 30.0, "drain": 5.0} | (limits or {}))
            own = settings.pop("pool", pool)
            made = Settings(urls, tmp_path / "adapters", limits=bounds)
            running = Running(own, replace(made, **settings), embedder)
            stack.callback(running.end)
            return running

        yield make


@pytest.fixture
def nowhere() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
