"""What backends lack is said in a line that names the setting, and what works without it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilora.errors import InputError
from hilora.gateway.folder import AdapterFolder
from hilora.gateway.listed import options_of, write_all
from hilora.gateway.told import is_failure, models_of, numbers_of, refusal_of
from hilora.pool.pool import Pool
from hilora.serve.state import State

MIXTURE: dict[str, Any] = {"method": "mixture", "options": {"k": 3}}
LACKS: dict[str, tuple[dict[str, Any], str]] = {
    "no endpoint": ({"loads": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and one API server"),
    "no adapters": ({"lora": False}, "--enable-lora"),
    "ranks": ({"max_rank": 8}, "Start vLLM with --max-lora-rank 16, or the gateway with --max-lora-rank 8."),
    "names": ({"checks_names": False}, "without VLLM_SKIP_MODEL_NAME_VALIDATION"),
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_lacks_for_compositions_is_refused_at_the_start(opened: Any, fakes: Any, lack: str) -> None:
    knobs, told = LACKS[lack]
    with pytest.raises(InputError) as caught:
        opened(fakes(**knobs), **MIXTURE)
    assert told in str(caught.value)
    assert "mixture may put several adapters together" in str(caught.value)
    both = opened(fakes(**knobs), fakes(), **MIXTURE)  # one of two is enough
    assert any(told in line for line in both.said)
    assert all(both.ask(text).status_code == 200 for text in ("aaa abab", "xyz zzy") * 3)


def test_adapters_one_at_a_time_work_where_compositions_do_not(opened: Any, fakes: Any) -> None:
    fake = fakes(max_rank=8)
    gateway = opened(fake)
    assert gateway.said == []  # selection needs no more than the largest rank of the pool
    assert gateway.says("aaa abab").startswith("hilora-")
    small = opened(fakes(max_rank=4))
    assert "Start vLLM with --max-lora-rank 8, or the gateway with --max-lora-rank 1." in " ".join(small.said)
    assert small.ask("aaa abab").status_code == 200  # of rank 4
    too_large = small.ask("123 3211")  # of rank 6
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (503, "adapter_not_loaded")
    assert "Retry-After" in too_large.headers
    cut = opened(fakes(max_rank=4), ranks=4)
    assert cut.said == []
    refused = cut.ask("whatever", model="delta")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_too_large")


def test_adapters_that_a_backend_was_started_with_serve_where_none_can_be_loaded(
    opened: Any, fakes: Any, pool: Pool, tmp_path: Path
) -> None:
    folder = AdapterFolder(tmp_path / "adapters", 10**9, 0.0)
    names = list(write_all(pool, folder, "models/tiny"))
    gateway = opened(fakes(loads=False, listed=tuple(names)))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in gateway.said[0]
    assert "4 adapters that it has loaded" in gateway.said[0]
    said = {gateway.says(text).split(":")[0] for text in ("aaa abab", "xyz zzy", "mno onm", "123 3211")}
    assert said == set(names)
    assert gateway.says("aaa", model="base") == "tiny: one two three"
    none = opened(fakes(loads=False))
    assert none.ask("aaa abab").json()["error"]["code"] == "adapter_not_loaded"
    assert none.ask("aaa abab", model="base").status_code == 200
    options = " ".join(options_of(pool, names, "/mnt/adapters"))
    assert f"{names[0]}=/mnt/adapters/{names[0]}" in options
    assert "--max-lora-rank 8 " in options


def test_a_folder_that_the_backend_does_not_see_is_said(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(), adapters_at="/elsewhere")
    assert "mount it there under the same path, or give its path there as --adapters-at" in gateway.said[0]
    assert gateway.ask("aaa abab").status_code == 503
    assert gateway.ask("aaa abab", model="base").status_code == 200


def test_the_folder_may_lie_elsewhere_at_the_backend(opened: Any, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(tmp_path / "adapters")
    fake = fakes()
    gateway = opened(fake, adapters_at=f"{tmp_path}/there/")
    name = gateway.says("aaa abab").split(":")[0]
    assert fake.adapters == {name: f"{tmp_path}/there/{name}"}
    config = json.loads((tmp_path / "adapters" / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/tiny"  # letter by letter as --model


def test_a_backend_of_another_base_is_said_and_so_is_a_wrong_key(
    opened: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = opened(fakes(root="models/huge"))
    assert "serves 'huge'; the pool's adapters are for 'tiny'" in gateway.said[0]
    monkeypatch.setenv("HILORA_BACKEND_KEY", "wrong")
    gateway = opened(fakes(key="right"))
    assert any("set HILORA_BACKEND_KEY" in line for line in gateway.said)
    assert gateway.ask("aaa abab").status_code == 503


def test_what_each_backend_lacks_is_told_to_administrators(opened: Any, fakes: Any, pool: Pool) -> None:
    secret, _ = State(pool.path).add_token("", ("admin", "use"))
    user, _ = State(pool.path).add_token("", ("use",))
    gateway = opened(fakes(loads=False), fakes())
    found = {
        who: gateway.client.get("/readyz", headers={"Authorization": f"Bearer {key}"} if key else {}).json()
        for who, key in (("admin", secret), ("user", user), ("nobody", ""))
    }
    assert found["nobody"] == found["user"] == {"status": "ready", "backends": 2, "up": 2}
    assert len(found["admin"]["problems"]) == 1
    assert found["admin"]["method"] == "selection"
    assert gateway.client.get("/metrics", headers={"Authorization": f"Bearer {user}"}).status_code == 403
    page = gateway.client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).text
    assert 'hilora_gateway_up{backend="0"} 1.0' in page


def test_a_pool_that_grows_is_looked_at_again(opened: Any, fakes: Any, pool: Pool, tiny: Any, embedder: Any) -> None:
    fake = fakes(max_rank=8)
    gateway = opened(fake)
    sites = tiny.sites(tiny.model("llama"), "llama")
    folder = tiny.adapter(pool.path.parent / "large", sites, rank=12, seed=5)
    Pool.open(pool.path).add("large", folder, tiny.texts("delta", 12, 9), embedder)
    gateway.wait(lambda: gateway.gateway.fleet.backends[0].problems)
    assert "--max-lora-rank 16" in gateway.gateway.fleet.backends[0].problems[0]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("vllm-1:8000", "expected http://HOST:PORT"),
        ("ftp://x", "expected http://HOST:PORT"),
        ("http://me:secret@x", "Give the key as HILORA_BACKEND_KEY"),
        ("http://x:abc", "Give http://HOST:PORT"),
    ],
)
def test_what_is_no_backend_is_refused(opened: Any, url: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        opened(url)
    assert "secret" not in str(caught.value)


def test_a_gateway_without_backends_is_refused(opened: Any) -> None:
    with pytest.raises(InputError, match="needs a --backend"):
        opened()


def test_metrics_and_cards_that_are_not_as_expected_say_nothing() -> None:
    assert numbers_of("") == numbers_of("# nothing\nother 3\n")
    page = (
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n'
        'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:num_requests_waiting_by_reason{reason="x"} 9.0\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a",waiting_lora_adapters=""} 5.0\n'
        'vllm:lora_requests_info{max_lora="6",running_lora_adapters="",waiting_lora_adapters=""} 7.0\n'
    )
    assert (numbers_of(page).requests, numbers_of(page).max_lora) == (9, 6)
    for strange in (None, [], {}, {"data": 3 * [None]}, {"data": [{"id": 3}]}):
        assert models_of(strange).base == ""


@pytest.mark.parametrize(
    ("status", "kind", "message", "told"),
    [
        (404, "", "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (404, "Not Found", "Not Found", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (405, "", "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (404, "NotFoundError", "Loading lora x failed: No adapter found for <path>", "--adapters-at"),
        (500, "", "Worker failed with error 'LoRA rank 32 is greater than max_lora_rank 16.', please", "above 16"),
        (500, "", "While loading x, expected target modules in {..} but received [..]", "--model"),
        (401, "", "Unauthorized", "HILORA_BACKEND_KEY"),
        (500, "", "Adapter bias is not supported.", "Adapter bias is not supported"),
    ],
)
def test_what_vllm_refuses_is_told_by_the_setting(status: int, kind: str, message: str, told: str) -> None:
    assert told in str(refusal_of(0, status, kind, message))


def test_an_event_of_failure_is_one_of_the_server() -> None:
    assert is_failure(b'data: {"error": {"code": 500}}')
    assert is_failure(b'data: {"error": {"message": "x"}}')
    assert is_failure(b'data: {"error" broken')
    assert not is_failure(b'data: {"error": {"code": 400}}')
    assert not is_failure(b'data: {"id": "x", "error": null}')


def test_a_backend_that_finds_adapters_by_itself_is_never_told_to_load(
    opened: Any, fakes: Any, tmp_path: Path
) -> None:
    finding, other = fakes(resolves=tmp_path / "adapters", loads=False), fakes(loads=False)
    gateway = opened(finding, resolves=True, method="mixture", ranks=64)
    gateway.wait(lambda: gateway.client.get("/readyz").status_code == 200)
    assert gateway.says("aaa abab").startswith("hilora-")
    finding.adapters.clear()  # as after a restart
    assert gateway.says("aaa abab").startswith("hilora-")
    assert not finding.seen.loads
    lost = opened(other, resolves=True)
    lost.wait(lambda: lost.gateway.fleet.backends[0].problems)
    (line,) = lost.gateway.fleet.backends[0].problems
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" in line
