"""`hilora gateway` in front of stock vLLM: answers are the library's, also when one of two servers is killed.

Stock vLLM on a CPU gives rows of the base model the adapter of other rows in their batch, so the base is asked alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hilora import HiLoRA
from hilora.gateway.run import LIMITS, Settings
from tests.gateway.conftest import Running
from tests.vllm.live.conftest import World

METHODS: dict[str, dict[str, Any]] = {
    "base": {},
    "selection": {},
    "mixture": {"k": 3},
    "hilora-gs": {},
    "hilora-plus": {},
}
TOKENS = 24
RANK = 64


class Stock:
    """A vLLM server without plugins.

    Args:
        world: what it serves.
        folder: for its log.
        options: more of its command line.
        loads: whether adapters can be loaded while it runs.
    """

    def __init__(self, world: World, folder: Path, *options: str, loads: bool = True) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"vllm-{port}.log"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(world.base)]
        command += ["--dtype", "float32", "--max-model-len", "256", "--block-size", "32", "--max-num-seqs", "16"]
        command += ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "16", "--max-lora-rank", str(RANK)]
        command += ["--host", "127.0.0.1", "--port", str(port), *options]
        environment = world.environment | {"VLLM_PLUGINS": "", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}
        if loads:
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self) -> None:
        """Until it serves."""
        for _ in range(900):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx2.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.5)
        pytest.fail(f"The server did not start: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """Its processes end at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait(60)


@pytest.fixture(scope="module")
def stock(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    server = Stock(world, tmp_path_factory.mktemp("stock"))
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def opened(stack: ExitStack, world: World, folder: Path, *servers: Stock, **settings: Any) -> Running:
    """A gateway before servers; weights are not rounded, so that answers are the library's."""
    made = Settings([server.url for server in servers], folder / "adapters", levels=None, ranks=RANK, limits=LIMITS)
    running = Running(world.pool, replace(made, **settings), world.embedder)
    stack.callback(running.end)
    return running


def answers(world: World, prompts: list[str], method: str, **options: Any) -> list[str]:
    """The library's."""
    given = {"embedder": world.embedder, "dtype": "float32", **options}
    router = HiLoRA.from_pretrained(str(world.base), world.pool, method, **given)
    return [answer.text for answer in router.generate(prompts, max_new_tokens=TOKENS, do_sample=False)]


def text_of(reply: httpx2.Response) -> str:
    assert reply.status_code == 200, reply.text
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["text"])
    events = [each.removeprefix("data: ") for each in reply.text.split("\n\n") if each]
    assert events.pop() == "[DONE]"
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def ask(gateway: Running, prompt: str, model: str = "auto", **fields: Any) -> httpx2.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, **fields}
    return gateway.client.post("/v1/completions", json=body)


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_the_librarys(
    world: World, stock: Stock, prompts: list[str], tmp_path: Path, method: str
) -> None:
    options = METHODS[method]
    wanted = answers(world, prompts, method, **options)
    with ExitStack() as stack:
        routed = {} if method == "base" else {"method": method, "options": options}
        gateway = opened(stack, world, tmp_path, stock, **routed)
        assert gateway.said == []
        model = "base" if method == "base" else "auto"
        with ThreadPoolExecutor(16) as threads:
            whole = list(threads.map(lambda prompt: text_of(ask(gateway, prompt, model)), prompts))
            streamed = list(threads.map(lambda prompt: text_of(ask(gateway, prompt, model, stream=True)), prompts))
    assert whole == wanted
    assert streamed == wanted


def test_adapters_that_were_unloaded_or_beyond_what_memory_holds_answer_as_ever(
    world: World, stock: Stock, prompts: list[str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        gateway = opened(stack, world, tmp_path, stock, method="mixture", options={"k": 2}, methods=["selection"])
        ways = [{"hilora": {"method": method}} for method in ("mixture", "selection")]
        first = [text_of(ask(gateway, prompt, **way)) for way in ways for prompt in prompts]
        backend = gateway.gateway.fleet.backends[0]
        listed = httpx2.get(f"{stock.url}/v1/models", trust_env=False).json()["data"]
        names = [card["id"] for card in listed if card["parent"]]
        assert set(names) == set(backend.loaded)
        for name in names:
            body = {"lora_name": name}
            assert httpx2.post(f"{stock.url}/v1/unload_lora_adapter", json=body, trust_env=False).status_code == 200
        with ThreadPoolExecutor(16) as threads:
            pairs = [(prompt, way) for way in ways for prompt in prompts]
            again = list(threads.map(lambda pair: text_of(ask(gateway, pair[0], **pair[1])), pairs))
    assert again == first
    assert backend.numbers.max_lora == 4


def test_what_stock_vllm_refuses_is_told_by_the_setting(world: World, stock: Stock, tmp_path: Path) -> None:
    with ExitStack() as stack:
        elsewhere = opened(stack, world, tmp_path, stock, adapters_at="/nowhere")
        assert "--adapters-at" in elsewhere.said[0]
        large = opened(stack, world, tmp_path, stock, ranks=128, method="hilora-plus")
        assert large.said == []  # the whole pool has 28 ranks
        unknown = large.client.post(f"{stock.url}/v1/completions", json={"model": "nobody", "prompt": "a"})
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")
        refused = ask(large, "aba", n=0)
        assert refused.status_code == 400, refused.text
        assert ask(large, "aba", model="nobody").json()["error"]["code"] == "model_not_found"


def test_nothing_is_lost_when_one_of_two_servers_is_killed(
    world: World, stock: Stock, prompts: list[str], tmp_path: Path
) -> None:
    router = HiLoRA.from_pretrained(
        str(world.base), world.pool, "selection", embedder=world.embedder, dtype="float32"
    )
    wanted = [answer.text for answer in router.generate(prompts, max_new_tokens=TOKENS, do_sample=False)]
    doomed = Stock(world, tmp_path)
    try:
        doomed.wait()
        with ExitStack() as stack:
            gateway = opened(stack, world, tmp_path, doomed, stock)
            assert [text_of(ask(gateway, prompt)) for prompt in prompts] == wanted
            first, second = gateway.gateway.fleet.backends
            with ThreadPoolExecutor(32) as threads:
                asked = [
                    threads.submit(ask, gateway, prompt, stream=n % 4 == 3) for n, prompt in enumerate(prompts * 4)
                ]
                gateway.wait(lambda: first.inside >= 3 and second.inside >= 3)
                doomed.kill()
                found = [each.result() for each in asked]
    finally:
        doomed.kill()
    broken = 0
    for reply, text in zip(found, wanted * 4, strict=True):
        if reply.text.endswith("\n\n") and "[DONE]" not in reply.text:
            broken += 1
            assert "backend_lost" in reply.text.split("\n\n")[-2]  # a stream of which a word was told
        else:
            assert text_of(reply) == text
    print(f"{len(found)} requests, {len(found) - broken} answered, {broken} streams ended with an error")
    assert broken <= sum(1 for number in range(len(found)) if number % 4 == 3)
