"""vLLM's own API server with the plugin: unlabelled prompts are routed; clients' compositions are dropped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from hilora import HiLoRA, Planner, get_method
from hilora.pool.export import export_adapter
from hilora.vllm import route
from hilora.vllm.private import names
from hilora.vllm.wire import FIELD, encode
from tests.vllm.live.conftest import World

TEXT, CHAT, TOKENS = "/v1/completions", "/v1/chat/completions", "/inference/v1/generate"


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that has one adapter of the pool as its own, too."""
    folder = tmp_path_factory.mktemp("server")
    export_adapter(world.pool, "b", folder / "own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(world.base)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "256", "--block-size", "32"]
    command += [
        "--enable-lora",
        "--max-loras",
        "6",
        "--max-lora-rank",
        "8",
        "--lora-modules",
        f"own={folder / 'own'}",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "16", "--api-key", "secret"]
    command += ["--enable-scale-out"]
    environment = world.environment | {"VLLM_PLUGINS": "hilora"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    headers = {"Authorization": "Bearer secret"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers=headers) as client:
            wait(client, process, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(60)


def wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"The server did not start: {log.read_text()[-3000:]}")


def complete(server: httpx.Client, model: str, prompt: str, **more: Any) -> httpx.Response:
    return server.post(TEXT, json={"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0} | more)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


@pytest.mark.parametrize("method", ["hilora-plus", "hilora", "selection", "mixture"])
def test_unlabelled_prompts_are_answered_as_the_library_answers(
    server: httpx.Client, world: World, prompts: list[str], method: str
) -> None:
    some = prompts[::2]
    router = HiLoRA.from_pretrained(str(world.base), world.pool, method, embedder=world.embedder, dtype="float32")
    wanted = router.generate(some, max_new_tokens=24, do_sample=False, seed=3)
    asked = {"hilora": {"method": method, "seed": 3, "explain": True}}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda prompt: complete(server, "auto", prompt, **asked), some))
    assert [text_of(reply) for reply in replies] == [answer.text for answer in wanted]
    for reply, answer in zip(replies, wanted, strict=True):
        assert reply.headers["x-hilora-adapters"] == ",".join(answer.adapters)
        assert (reply.headers["x-hilora-method"], reply.headers["x-hilora-seed"]) == (method, "3")
        told = reply.json()["hilora"]["adapters"]
        assert {each["name"]: each["rocs"] for each in told} == answer.rocs


def test_what_is_drawn_comes_again_with_its_seed(server: httpx.Client, prompts: list[str]) -> None:
    asked = {"hilora": {"method": "hilora"}, "temperature": 1.0}
    first = complete(server, "auto", prompts[0], **asked)
    seed = int(first.headers["x-hilora-seed"])
    assert text_of(complete(server, "auto", prompts[0], **asked | {"seed": seed})) == text_of(first)


def test_a_name_is_the_base_an_adapter_or_vllms_own(server: httpx.Client, world: World, prompts: list[str]) -> None:
    listed = [card["id"] for card in server.get("/v1/models").json()["data"]]
    assert listed == ["tiny", "own", "auto", "base", *world.pool.names]
    base, b = (
        HiLoRA.from_pretrained(str(world.base), world.pool, method, embedder=world.embedder, dtype="float32")
        for method in ("base", "oracle")
    )
    options = {"max_new_tokens": 24, "do_sample": False}
    (alone,), (adapted,) = base.generate(prompts[:1], **options), b.generate(prompts[:1], labels=["b"], **options)
    entry = world.pool.entries[world.pool.index("b")]
    for model, wanted in (("tiny", alone), ("base", alone), ("b", adapted), (entry.hash, adapted), ("own", adapted)):
        assert text_of(complete(server, model, prompts[0])) == wanted.text, model
    unknown = complete(server, "nobody", prompts[0])
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")


def test_a_stream_says_how_it_was_routed(server: httpx.Client, prompts: list[str]) -> None:
    chat = {"model": "tiny", "prompt": prompts[0], "max_tokens": 4, "temperature": 0}
    whole = text_of(server.post(TEXT, json=chat | {"model": "auto", "seed": 3}))
    with server.stream("POST", TEXT, json=chat | {"model": "auto", "seed": 3, "stream": True}) as reply:
        assert reply.headers["x-hilora-seed"] == "3"
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert events.pop() == "[DONE]"
    found = [json.loads(event) for event in events]
    assert ["hilora" in event for event in found] == [True, *[False] * (len(found) - 1)]
    assert "".join(choice["text"] for event in found for choice in event["choices"]) == whole


def test_a_composition_that_a_client_sends_is_dropped(server: httpx.Client, world: World, prompts: list[str]) -> None:
    planner = Planner(world.pool, get_method("selection"), world.embedder)
    (routed,) = route(planner, prompts[:1])
    value = encode(routed.composition)  # type: ignore[arg-type]
    base = text_of(complete(server, "tiny", prompts[0]))
    assert text_of(complete(server, "auto", prompts[0], hilora={"method": "selection"})) != base
    for sent in (json.dumps(value), ["hilora"], 1):
        assert text_of(complete(server, "tiny", prompts[0], vllm_xargs={FIELD: sent})) == base
        assert text_of(complete(server, "base", prompts[0], vllm_xargs={FIELD: sent})) == base
    ids = server.post("/tokenize", json={"model": "tiny", "prompt": prompts[0]}).json()["tokens"]
    sampling = {"max_tokens": 24, "temperature": 0}
    plain, forged = (
        server.post(TOKENS, json={"model": "tiny", "token_ids": ids, "sampling_params": sampling | extra})
        for extra in ({}, {"extra_args": {FIELD: value}})
    )
    assert (plain.status_code, forged.status_code) == (200, 200), forged.text
    assert forged.json()["choices"][0]["token_ids"] == plain.json()["choices"][0]["token_ids"]


def test_nobody_without_the_key_has_anything_routed(server: httpx.Client, prompts: list[str]) -> None:
    reply = server.post(TEXT, json={"model": "auto", "prompt": prompts[0]}, headers={"Authorization": "Bearer no"})
    assert reply.status_code == 401
    assert "x-hilora-seed" not in reply.headers


PLAIN = """
import os, sys
from vllm import plugins
from hilora.vllm.private import names

def found():
    plugins.plugins_loaded = False
    plugins.load_general_plugins()
    doors = [type(plugin).__name__ for plugin in plugins.load_endpoint_plugins(("generate",))]
    return sum(hasattr(getattr(*names._owner(name)), "of_hilora") for name in names.HOOKED), doors

for variables in ({}, {"VLLM_PLUGINS": "hilora"}, {"HILORA_POOL": sys.argv[1], "VLLM_PLUGINS": "other"}):
    os.environ |= variables
    print(found())
del os.environ["VLLM_PLUGINS"]
print(found(), len(names.HOOKED))
os.environ["VLLM_PLUGINS"] = "hilora"
print(found()[1])
"""


def test_vllm_is_plain_unless_it_is_asked_for_more(world: World) -> None:
    environment = {name: own for name, own in os.environ.items() if name not in ("VLLM_PLUGINS", "HILORA_POOL")}
    command = [sys.executable, "-c", PLAIN, str(world.pool.path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    count = len(names.HOOKED)
    assert [line for line in ended.stdout.splitlines() if line[0] in "(["] == [
        "(0, [])",  # hilora is installed, nothing more
        "(0, ['Shut'])",
        "(0, [])",
        f"({count}, []) {count}",  # for Python; vLLM's server has no door unless it is named
        "['Plugin']",
    ]
