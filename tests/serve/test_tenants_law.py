"""The law of tenants: whether others' private adapters are there or not, a caller is answered byte for byte alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hilora import HiLoRA
from hilora.pool.folder import PoolFolder
from hilora.pool.pool import Pool
from hilora.serve.access import Doorkeeper
from hilora.serve.api_adapters import adapter_routes
from hilora.serve.app import make_app
from hilora.serve.desk import GROWING, PoolDesk
from hilora.serve.limits import Limits
from hilora.serve.publish import Publisher
from hilora.serve.state import State
from hilora.serve.tenants import inner_name
from hilora.serve.uploads import Uploads

PROMPTS = ["abab baab abba", "xyz zzy yxyx", "mno onm mmnn", "123 3211 2231"]
UNLIKE = re.compile(r'("(?:id|created|added|changed|since|request_id)": ?)("[^"]*"|\d+)')
"""What differs between any two answers, or counts changes of the pool."""


class Served:
    """A whole service over a pool.

    Args:
        pool: what is served.
        token: a caller's, of tenant A.
    """

    def __init__(self, stack: ExitStack, pool: Path, router: Any) -> None:
        limits, state = Limits(), State(pool)
        secret, _ = state.add_token("a", ["use", "upload"])
        self.headers = {"Authorization": f"Bearer {secret}"}
        keeper = Doorkeeper(state, is_open=False)
        self.desk = PoolDesk(router(PoolFolder.open(pool)), limits)

        def change() -> None:
            self.desk.change(PoolFolder.open(pool))

        uploads = Uploads(Publisher(pool, limits, change, lambda: self.desk.edition.view), state, limits)
        uploads.open()
        app = make_app(
            self.desk, limits, keeper, others=[adapter_routes(uploads, keeper)], closed=[uploads.close], local=False
        )
        self.client = stack.enter_context(TestClient(app, raise_server_exceptions=False))

    def says(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        answer = self.client.request(method, path, headers=self.headers, **options)
        return answer.status_code, UNLIKE.sub(r"\1_", answer.text)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, tiny: Any) -> Iterator[tuple[Served, Served]]:
    """The same pool without, and with, adapters that are another tenant's own."""
    home, embedder = tmp_path_factory.mktemp("law"), tiny.embedder()
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with ExitStack() as stack:
        made = []
        for name, others in (("without", False), ("with", True)):
            pool: Pool = tiny.pool(home / name, "llama", model, embedder)
            add(pool, home, tiny, "own", "a", 40, "alpha")
            pool.renew_epoch(["alpha", "beta", "gamma", "delta"])
            if others:
                for seed, task in enumerate(("alpha", "delta", "gamma")):
                    add(pool, home, tiny, f"secret{seed}", "b", 50 + seed, task)

            def router(view: PoolFolder) -> HiLoRA:
                return HiLoRA.from_pretrained(model, view, "hilora", tokenizer=tokenizer, embedder=embedder)

            made.append(Served(stack, pool.path, router))
        yield made[0], made[1]


def add(pool: Pool, home: Path, tiny: Any, name: str, tenant: str, seed: int, task: str) -> None:
    """A tenant's own adapter."""
    folder = home / f"sent{seed}"
    if not folder.exists():
        tiny.adapter(folder, tiny.sites(tiny.model("llama"), "llama"), rank=2 + seed % 3, seed=seed)
    inner = inner_name(tenant, name)
    pool.add(inner, folder, tiny.texts(task, 20, seed), tiny.embedder())
    with pool._edit() as draft:
        draft.entries[inner] = replace(draft[inner], extra={"tenant": tenant, "called": name})


@pytest.mark.parametrize("method", GROWING)
def test_routes_answers_and_their_reasons_are_alike(pair: Any, method: str) -> None:
    for prompt in PROMPTS:
        for asked in ({"method": method, "explain": True}, {"method": method, "explain": True, "allow": ["own"]}):
            body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "seed": 3, "hilora": asked}
            one, other = (each.says("POST", "/v1/route", json=body) for each in pair)
            assert one == other
            assert one[0] == 200, one
        one, other = (
            each.says("POST", "/v1/chat/completions", json=body | {"max_tokens": 5, "temperature": 0})
            for each in pair
        )
        assert one == other
        assert one[0] == 200, one
        assert "secret" not in other[1]
        seen = [each.says("POST", "/v1/activations", json=body | {"answer": "aba"}) for each in pair]
        assert seen[0] == seen[1]
        assert seen[0][0] == 200, seen
    one, other = (each.says("GET", "/v1/traffic") for each in pair)
    assert one == other


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/secret0", None),
        ("GET", "/v1/models/own", None),
        ("GET", "/v1/adapters", None),
        ("GET", "/v1/adapters?limit=2", None),
        ("GET", "/v1/adapters/secret1", None),
        ("DELETE", "/v1/adapters/secret1", None),
        ("GET", "/v1/adapters/b..secret1", None),
        ("POST", "/v1/route", {"model": "secret0", "input": "abab"}),
        ("POST", "/v1/route", {"model": "secret", "input": "abab"}),
        ("POST", "/v1/route", {"model": "b..secret0", "input": "abab"}),
        ("POST", "/v1/route", {"input": "abab", "hilora": {"allow": ["secret0"]}}),
        ("POST", "/v1/route", {"input": "abab", "hilora": {"allow": []}, "seed": 1}),
        ("POST", "/v1/route", {"input": "abab", "hilora": {"method": "oracle"}}),
        ("POST", "/v1/activations", {"model": "secret0", "input": "abab"}),
        ("GET", "/v1/about", None),
        ("GET", "/metrics", None),
        ("GET", "/readyz", None),
    ],
)
def test_lists_and_errors_are_alike(pair: Any, method: str, path: str, body: Any) -> None:
    one, other = (each.says(method, path, **({} if body is None else {"json": body})) for each in pair)
    assert one == other
    told = "" if body is None else str(body)
    assert "secret" not in other[1] or "secret" in path + told  # only what was asked for is said again


def test_an_adapter_of_ones_own_may_be_called_and_be_like_anothers(pair: Any, tiny: Any, tmp_path: Path) -> None:
    """The same name, and the same content, are no conflict, and the verdict is the same."""
    said = []
    for number, each in enumerate(pair):
        folder = tiny.adapter(tmp_path / str(number), tiny.sites(tiny.model("llama"), "llama"), rank=4, seed=50)
        files = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        found = each.says("POST", "/v1/adapters", files=files, data={"name": "secret0", "private": "true"})
        said.append(found)
    assert said[0] == said[1]
