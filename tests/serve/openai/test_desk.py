"""The layer before a desk with a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from hilora import HiLoRA
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.limits import Limits
from hilora.serve.openai import Guard, install_errors, routes

pytestmark = pytest.mark.anyio
PROMPT = "abab baab abba"


def everybody() -> Caller:
    return Caller()


@pytest.fixture
def router(shared_pool: Any, joined: Any, embedder: Any) -> HiLoRA:
    model, pool = shared_pool("llama")
    return HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=joined, embedder=embedder)


@pytest.fixture
def app(router: HiLoRA) -> Iterator[FastAPI]:
    desk = PoolDesk(router, Limits())
    made = FastAPI()
    made.include_router(routes(desk, Limits(), everybody))
    install_errors(made)
    made.add_middleware(Guard, limits=Limits())
    yield made
    desk.close(0.0)


async def test_a_client_is_answered_what_the_library_answers(client: httpx2.AsyncClient, router: HiLoRA) -> None:
    for options, asked in (({}, {}), ({"do_sample": True, "temperature": 1.3}, {"temperature": 1.3})):
        (want,) = router.generate(PROMPT, max_new_tokens=9, seed=4, **options)
        given = {"prompt": PROMPT, "max_tokens": 9, "seed": 4, **asked}
        whole = (await client.post("/v1/completions", json=given)).json()
        assert whole["choices"][0]["text"] == want.text
        assert whole["choices"][0]["finish_reason"] == want.finish_reason
        assert [part["name"] for part in whole["hilora"]["adapters"]] == want.adapters
        used = {"prompt_tokens": want.prompt_tokens, "completion_tokens": want.completion_tokens}
        assert whole["usage"] | used == whole["usage"]
        stream = (await client.post("/v1/completions", json=given | {"stream": True, "logprobs": 1})).text
        pieces = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == want.text
        tokens = [token for piece in pieces for token in piece["choices"][0]["logprobs"]["tokens"]]
        assert len(tokens) == want.completion_tokens


async def test_what_the_model_refuses_names_the_field(client: httpx2.AsyncClient) -> None:
    for path, given, status, code, param in (
        ("/v1/completions", {"prompt": "a" * 300}, 400, "context_length_exceeded", "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": " "}]}, 400, "invalid_value", None),
        ("/v1/completions", {"prompt": "a", "model": "nobody"}, 404, "model_not_found", "model"),
        ("/v1/route", {"input": "a", "hilora": {"allow": ["nobody"]}}, 400, "invalid_value", "hilora.allow"),
        ("/v1/route", {"input": "a", "hilora": {"options": {"gama": 1}}}, 400, "invalid_value", None),
        ("/v1/route", {"input": "a", "hilora": {"options": {"gamma": "x"}}}, 400, "invalid_value", None),
    ):
        response = await client.post(path, json=given)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
