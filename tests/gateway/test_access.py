"""Who may what in a gateway: the same tokens as at a server, and no tenant's adapters for others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilora.errors import InputError
from hilora.pool.pool import Pool
from hilora.serve.state import State
from hilora.serve.tenants import inner_name


@pytest.fixture
def owned(pool: Pool) -> Pool:
    """A pool in which "alpha" is a tenant's own."""
    entry = pool.entries[pool.index("alpha")]
    pool.publish(replace(entry, name=inner_name("acme", "alpha"), extra={"tenant": "acme", "called": "alpha"}))
    pool.remove("alpha")
    return Pool.open(pool.path)


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_others_reach_a_gateway_with_tokens_only(opened: Any, fakes: Any, pool: Pool) -> None:
    with pytest.raises(InputError, match="has no tokens"):
        opened(fakes(), host="0.0.0.0")
    secret, _ = State(pool.path).add_token("", ("use",))
    fake = fakes()
    gateway = opened(fake)
    body = {"model": "auto", "messages": [{"role": "user", "content": "aaa abab"}]}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/route"):
        for headers in ({}, key("wrong")):
            assert gateway.client.post(path, json=body, headers=headers).status_code == 401
    assert gateway.client.get("/v1/models").status_code == 401
    assert gateway.client.post("/v1/chat/completions", json=body, headers=key(secret)).status_code == 200
    assert len(fake.seen.bodies) == 1
    assert secret not in str(fake.seen.headers)
    uploader, _ = State(pool.path).add_token("", ("upload",))
    assert gateway.client.post("/v1/chat/completions", json=body, headers=key(uploader)).status_code == 403


def test_a_tenants_own_adapter_serves_nobody_else(opened: Any, fakes: Any, owned: Pool) -> None:
    acme, other = (State(owned.path).add_token(name, ("use",))[0] for name in ("acme", "other"))
    fake = fakes()
    gateway = opened(fake, pool=owned)
    entry = next(each for each in owned.entries if each.extra.get("tenant"))

    def ask(secret: str, model: str = "auto", **hilora: Any) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "aaa abab"}], "hilora": hilora or None}
        return gateway.client.post("/v1/chat/completions", json=body, headers=key(secret))

    own = ask(acme)
    assert own.headers["x-hilora-adapters"] == "alpha"
    assert ask(acme, "alpha").json() == own.json()
    for model in ("alpha", entry.name, entry.hash, own.json()["model"]):
        refused = ask(other, model)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(other).headers["x-hilora-adapters"] != "alpha"
    assert ask(other).json()["model"] != own.json()["model"]
    assert ask(other, allow=["alpha"]).status_code == 400
    seen = gateway.client.get("/v1/models", headers=key(other)).text
    assert "alpha" not in seen
    assert entry.hash not in seen


def test_a_page_of_another_site_is_refused(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes())
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert gateway.client.get("/v1/models", headers=headers).status_code == 403


def test_paths_that_load_adapters_are_not_offered(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        found = gateway.client.post(path, json={"lora_name": "x", "lora_path": "/etc"})
        assert (found.status_code, found.json()["error"]["code"]) == (404, "unknown_url")
    assert set(fake.adapters) == set()


def test_a_pool_that_may_only_be_read_is_served(opened: Any, fakes: Any, pool: Pool, tmp_path: Path) -> None:
    shutil.copytree(pool.path, tmp_path / "other")
    before = sorted(path.name for path in (tmp_path / "other").rglob("*"))
    gateway = opened(fakes(), pool=Pool.open(tmp_path / "other"))
    assert gateway.ask("aaa abab").status_code == 200
    assert sorted(path.name for path in (tmp_path / "other").rglob("*")) == before
