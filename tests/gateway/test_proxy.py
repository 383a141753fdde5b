"""Laws of the gateway: what is asked goes on as it came, and comes back as it is."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from hilora.gateway.folder import NAME
from hilora.pool.pool import Pool

TASKS = {"alpha": "aaa abab baab", "beta": "xyz zzy yxyx", "gamma": "mno onm mmnn", "delta": "123 3211 2231"}


def test_a_prompt_is_answered_by_the_adapter_that_fits_it(opened: Any, fakes: Any, pool: Any) -> None:
    gateway = opened(fakes())
    names = {}
    for task, text in TASKS.items():
        found = gateway.ask(text)
        assert found.headers["x-hilora-adapters"] == task
        assert found.headers["x-hilora-method"] == "selection"
        names[task] = found.json()["model"]
        assert NAME.fullmatch(names[task])
        assert found.json()["choices"][0]["message"]["content"].startswith(names[task])
        entry = pool.entries[pool.index(task)]
        assert (
            gateway.says("whatever", model=entry.hash) == gateway.says("whatever", model=task) == gateway.says(text)
        )
    assert len(set(names.values())) == 4
    assert gateway.says("aaa abab", model="base") == "tiny: one two three"
    missing = gateway.ask(model="alhpa")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert "alpha" in missing.json()["error"]["message"]


def test_the_same_composition_is_one_name_one_folder_one_load(opened: Any, fakes: Any, tmp_path: Any) -> None:
    fake = fakes(pause=0.02)
    gateway = opened(fake, method="mixture", options={"k": 2})
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(gateway.says, ["aaa abab baab", "aaa abab", "abba abba"] * 8))
    assert len(set(said)) == 1
    name = said[0].split(":")[0]
    assert fake.seen.loads[name] == 1
    probe = {each for each in fake.seen.unloads}
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {name, *probe}
    assert len(probe) == 1


def test_everything_but_model_and_hilora_goes_on_untouched(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)
    fields = {
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "aaa abab"}, {"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "user", "content": "baab 🙂"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": {"c": {"d": [[[1]]]}}}}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        "logprobs": True,
        "n": 2,
        "seed": 7,
        "temperature": 0.25,
        "guided_choice": ["a"],
        "vllm_xargs": {"mine": 1},
        "unheard_of": None,
    }  # fmt: skip
    sent = {"model": "auto", "hilora": {"allow": ["alpha", "beta"]}, **fields}
    found = gateway.client.post("/v1/chat/completions", json=sent)
    assert found.status_code == 200, found.text
    got = dict(fake.seen.bodies[-1])
    assert NAME.fullmatch(got.pop("model"))
    assert got == fields
    assert found.headers["x-hilora-seed"] == "7"
    assert gateway.ask("aaa", hilora={"seed": 11}).headers["x-hilora-seed"] == "11"
    assert fake.seen.bodies[-1]["seed"] == 11
    assert "x-hilora-seed" not in gateway.ask("aaa").headers
    assert "seed" not in fake.seen.bodies[-1]


def test_completions_route_one_text_and_pass_on_what_is_named(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)

    def complete(**body: Any) -> Any:
        return gateway.client.post("/v1/completions", json=body)

    assert complete(model="auto", prompt="aaa abab").headers["x-hilora-adapters"] == "alpha"
    assert complete(model="auto", prompt=["xyz zzy"]).headers["x-hilora-adapters"] == "beta"
    for prompt in ([1, 2], ["a", "b"], [[1], [2]], None, 3):
        refused = complete(model="auto", prompt=prompt)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    for model in ("base", "alpha"):
        for prompt in ([1, 2], ["a", "b"]):
            assert complete(model=model, prompt=prompt).status_code == 200
            assert fake.seen.bodies[-1]["prompt"] == prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"model": "auto", "messages": "aaa"}, "messages"),
        ({"model": "auto", "messages": []}, "messages"),
        ({"hilora": {"methud": "x"}}, "hilora.methud"),
        ({"hilora": {"method": 3}}, "hilora.method"),
        ({"hilora": {"method": "mixture"}}, "hilora.method"),
        ({"hilora": {"allow": ["nobody"]}}, "hilora.allow"),
        ({"hilora": []}, "hilora"),
        ({"hilora": {"explain": True}, "stream": True}, "hilora.explain"),
        ({"model": "base", "hilora": {"allow": ["alpha"]}}, "hilora.allow"),
        ({"seed": 1, "hilora": {"seed": 2}}, "hilora.seed"),
        ({"lora_path": "alpha"}, "lora_path"),
        ({"lora_request": {"lora_name": "x"}}, "lora_request"),
        ({"vllm_xargs": {"hilora": "{}"}}, "vllm_xargs.hilora"),
    ],
)
def test_what_is_wrong_is_refused_in_openais_form(opened: Any, fakes: Any, fields: Any, param: str) -> None:
    fake = fakes()
    gateway = opened(fake)
    body = {"model": "auto", "messages": [{"role": "user", "content": "aaa"}]} | fields
    refused = gateway.client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert fake.seen.bodies == []
    assert gateway.client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}).json()["error"]["code"] == "invalid_json"  # fmt: skip
    assert gateway.client.post("/v1/chat/completions", content=b"{}").status_code == 415


def test_what_the_backend_refuses_comes_back_as_it_is(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)
    refused = gateway.ask("aaa", max_tokens=0)
    error = {"message": "max_tokens must be at least 1, got 0.", "type": "BadRequestError", "param": "max_tokens"}
    assert (refused.status_code, refused.json()) == (400, {"error": error | {"code": 400}})
    assert gateway.number("retries_total") == 0


def test_reasons_are_told_where_they_are_asked_for(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(), method="mixture", options={"k": 2})
    found = gateway.ask("aaa abab", hilora={"explain": True}).json()
    told = gateway.client.post("/v1/route", json={"input": "aaa abab"}).json()
    assert found["choices"][0]["message"]["content"]
    assert [each["name"] for each in found["hilora"]["adapters"]] == [e["name"] for e in told["hilora"]["adapters"]]
    assert {"score", "hash", "rank"} <= set(found["hilora"]["adapters"][0])
    assert "prompt_tokens" not in told
    assert "hilora" not in gateway.ask("aaa abab").json()


def test_the_official_client_works_with_streams_and_without(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes())
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "aaa abab"}]
        whole = client.chat.completions.create(model="auto", messages=messages)
        chunks = list(client.chat.completions.create(model="auto", messages=messages, stream=True))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == whole.choices[0].message.content
        assert len(chunks) == 5
        assert {"auto", "base", "alpha"} <= {model.id for model in client.models.list()}
        assert client.models.retrieve("alpha").id == "alpha"
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model="auto", messages=messages, extra_body={"lora_name": "x"})
        assert caught.value.code == "unsupported_parameter"
        text = client.completions.create(model="auto", prompt="xyz zzy", stream=True)
        assert "".join(chunk.choices[0].text for chunk in text).endswith("one two three")


def test_a_stream_comes_byte_for_byte(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "stream": True}
    direct = gateway.client.post(f"{fake.url}/v1/chat/completions", json=body | {"model": "tiny"})
    through = gateway.client.post("/v1/chat/completions", json=body)
    assert through.content == direct.content
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert gateway.client.post("/v1/completions", json={"model": "base", "prompt": [1]}).content == (
        gateway.client.post(f"{fake.url}/v1/completions", json={"model": "tiny", "prompt": [1]}).content
    )


def test_a_client_that_leaves_is_given_up_at_the_backend(opened: Any, fakes: Any) -> None:
    fake = fakes(hold=threading.Event())
    gateway = opened(fake)
    for stream in (False, True):
        before, seen = fake.seen.left, gateway.number("gone_total")
        with pytest.raises(Exception, match="timed out"):
            gateway.client.post(
                "/v1/chat/completions",
                json={"model": "base", "messages": [{"role": "user", "content": "x"}], "stream": stream},
                timeout=0.5,
            )
        gateway.wait(lambda before=before: fake.seen.left > before)
        gateway.wait(lambda seen=seen: gateway.number("gone_total") == seen + 1)
        assert gateway.gateway.fleet.backends[0].inside == 0


def test_a_method_that_abstains_asks_nobody(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake, method="hilora-plus", options={"fallback": "abstain"})
    gateway.gateway.chooser._planners.default.planner.method.router.seen_above_ = float("inf")  # all are strangers
    found = gateway.ask("?", hilora={"explain": True}, n=2).json()
    assert [choice["message"]["content"] for choice in found["choices"]] == ["", ""]
    assert found["hilora"]["abstained"] is True
    assert "no adapter fits" in gateway.ask("?").headers["x-hilora-note"]
    stream = gateway.ask("?", stream=True).text
    assert stream.endswith("data: [DONE]\n\n")
    assert '"abstained":true' in stream
    assert fake.seen.bodies == []


def test_methods_that_choose_token_by_token_are_refused(opened: Any, fakes: Any) -> None:
    with pytest.raises(Exception, match="gamma 0.4 chooses ROCs for every token"):
        opened(fakes(), method="hilora")
    gateway = opened(fakes(), method="hilora-plus", methods=["selection", "mixture", "hilora-gs"])
    for method in ("selection", "mixture", "hilora-gs"):
        assert gateway.ask("aaa", hilora={"method": method}).headers["x-hilora-method"] == method
    refused = gateway.ask("aaa", hilora={"options": {"gamma": 0.5}})
    assert (refused.status_code, "gamma 0.5" in refused.text) == (400, True)


def test_what_changes_in_the_pool_is_served_a_moment_later(opened: Any, fakes: Any, pool: Any) -> None:
    gateway = opened(fakes())
    assert gateway.ask("aaa abab").headers["x-hilora-adapters"] == "alpha"
    Pool.open(pool.path).remove("alpha")
    gateway.wait(lambda: gateway.ask("aaa abab", model="alpha").status_code == 404)
    assert gateway.ask("aaa abab").headers["x-hilora-adapters"] != "alpha"
    assert "alpha" not in {each["id"] for each in gateway.client.get("/v1/models").json()["data"]}


def test_what_waits_keeps_the_pool_that_it_was_routed_over(opened: Any, fakes: Any, pool: Any) -> None:
    fake = fakes(hold=threading.Event())
    gateway = opened(fake, limits={"running": 1})
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(gateway.ask, "x", model="base")
        gateway.wait(lambda: fake.seen.together == 1)
        waiting = threads.submit(gateway.ask, "aaa abab")
        gateway.wait(lambda: len(gateway.gateway.line) == 1)
        Pool.open(pool.path).remove("alpha")
        gateway.wait(lambda: "alpha" not in gateway.gateway.chooser.view.names)
        fake.knobs.hold.set()
        assert first.result().status_code == 200
        assert waiting.result().headers["x-hilora-adapters"] == "alpha"
        assert NAME.fullmatch(waiting.result().json()["model"])


def test_backends_are_told_nothing_of_clients_and_clients_nothing_of_backends(
    opened: Any, fakes: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HILORA_BACKEND_KEY", "the-backends-key")
    fake = fakes(key="the-backends-key")
    gateway = opened(fake)
    found = gateway.client.post(
        "/v1/chat/completions",
        json={"model": "auto", "messages": [{"role": "user", "content": "aaa"}]},
        headers={"Authorization": "Bearer the-clients-token", "Cookie": "a=b", "X-Secret": "c"},
    )
    assert found.status_code == 200
    told = json.dumps(fake.seen.headers[-1])
    assert "the-clients-token" not in told
    assert not {"cookie", "x-secret"} & set(fake.seen.headers[-1])
    assert "the-backends-key" not in found.text + str(found.headers) + caplog.text
    assert str(fake.port) not in found.text + str(found.headers)
    fake.knobs.key = "another"
    refused = gateway.ask("aaa", model="base")
    assert refused.status_code == 503
    assert "another" not in refused.text + caplog.text
    assert "the-backends-key" not in refused.text + caplog.text
