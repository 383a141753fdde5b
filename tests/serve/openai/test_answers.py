"""Answers in OpenAI's forms, whole and in pieces."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.anyio
TEXT = "A tale\u2028of wörds 🙂"


def events(response: Any) -> list[Any]:
    """What a stream holds, read as the clients do that end lines at every character which Python does."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_chat_is_answered_with_the_adapters_that_answered(client: Any, desk: Any, chat: Any) -> None:
    response = await client.post("/v1/chat/completions", json=chat(n=2, seed=3))
    found = response.json()
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    assert found["choices"] == [
        {"index": place, "message": message, "finish_reason": "stop", "logprobs": None} for place in range(2)
    ]
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert (found["object"], found["model"]) == ("chat.completion", "auto")
    adapters = [{"name": "sst2", "weight": 1.0}, {"name": "snli", "weight": 0.5}]
    assert found["hilora"] == {"method": "hilora", "adapters": adapters, "note": "", "seed": 3}
    assert response.headers["x-hilora-adapters"] == "sst2,snli"
    assert (response.headers["x-hilora-method"], response.headers["x-hilora-seed"]) == ("hilora", "3")
    assert desk.closed == 1


async def test_a_drawn_seed_is_told(client: Any, desk: Any, chat: Any) -> None:
    found = (await client.post("/v1/chat/completions", json=chat())).json()
    assert found["hilora"]["seed"] == desk.asked[0].seed


async def test_all_reasons_are_told_where_they_are_asked_for(client: Any, chat: Any) -> None:
    found = (await client.post("/v1/chat/completions", json=chat(hilora={"explain": True}))).json()["hilora"]
    assert (found["epoch"], found["pool"]) == ("e1", "5")
    assert found["adapters"][1] == {
        "name": "snli", "weight": 0.5, "score": None, "rocs": 3, "rank": 8, "hash": "ilns" * 4, "seen": True,
    }  # fmt: skip


async def test_a_text_is_continued(client: Any, chat: Any) -> None:
    found = (await client.post("/v1/completions", json={"prompt": "Hi", "model": "base", "logprobs": 1})).json()
    assert (found["object"], found["hilora"]["adapters"]) == ("text_completion", [])
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "stop")
    assert choice["logprobs"]["tokens"] == ["A ", "tale\u2028of ", "wörds 🙂"]
    assert choice["logprobs"]["token_logprobs"] == [-0.5] * 3
    assert choice["logprobs"]["text_offset"] == [0, 2, 10]
    assert choice["logprobs"]["top_logprobs"][0] == {"A ": -0.5, "other": -9999.0}


async def test_a_chats_log_probabilities_have_bytes(client: Any, chat: Any) -> None:
    found = (await client.post("/v1/chat/completions", json=chat(logprobs=True, top_logprobs=2))).json()
    last = found["choices"][0]["logprobs"]["content"][-1]
    assert bytes(last["bytes"]).decode() == last["token"] == "wörds 🙂"
    assert last["top_logprobs"][1] == {"token": "other", "logprob": -9999.0, "bytes": list(b"other")}


async def test_the_pieces_of_a_chat_make_its_answers(client: Any, desk: Any, chat: Any) -> None:
    given = chat(n=2, stream=True, stream_options={"include_usage": True}, logprobs=True)
    found = events(await client.post("/v1/chat/completions", json=given))
    assert {each["object"] for each in found} == {"chat.completion.chunk"}
    assert len({each["id"] for each in found}) == 1
    assert [place for place, each in enumerate(found) if "hilora" in each] == [0]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert all(each["usage"] is None for each in found[:-1])
    choices = [each["choices"][0] for each in found[:-1]]
    assert [choice["delta"].get("role") for choice in choices[:2]] == ["assistant", "assistant"]
    for answer in range(2):
        own = [choice for choice in choices if choice["index"] == answer]
        assert "".join(choice["delta"].get("content", "") for choice in own) == TEXT
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert [log["token"] for choice in own for log in choice["logprobs"]["content"]] == list(desk.words)
    assert desk.closed == 1


async def test_the_pieces_of_a_text_make_it(client: Any) -> None:
    found = events(await client.post("/v1/completions", json={"prompt": "Hi", "stream": True, "logprobs": 0}))
    assert all("usage" not in each for each in found)
    choices = [each["choices"][0] for each in found]
    assert "".join(choice["text"] for choice in choices) == TEXT
    assert [place for choice in choices for place in choice["logprobs"]["text_offset"]] == [0, 2, 10]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(("finish", "told"), [("length", "length"), ("abstain", "stop")])
async def test_ends_are_told_in_openais_words(client: Any, desk: Any, chat: Any, finish: str, told: str) -> None:
    desk.finish = finish
    whole = (await client.post("/v1/chat/completions", json=chat())).json()
    last = events(await client.post("/v1/chat/completions", json=chat(stream=True)))[-1]
    assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == told
    for found in (whole, last):
        assert found.get("hilora", {}).get("abstained", False) == (finish == "abstain")


async def test_names_in_headers_are_safe_and_do_not_grow_without_end(client: Any, desk: Any, chat: Any) -> None:
    desk.names = ["a,b\r\nSet-Cookie: x", "ü", *(f"adapter-{i}" for i in range(500))]
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json=chat(stream=stream))
        assert "set-cookie" not in response.headers
        listed = response.headers["x-hilora-adapters"].split(",")
        assert [unquote(name) for name in listed[:2]] == desk.names[:2]
        assert listed[-1] == "..."
        assert len(response.headers["x-hilora-adapters"]) < 2100
    told = (await client.post("/v1/chat/completions", json=chat())).json()["hilora"]
    assert (len(told["adapters"]), told["more"]) == (20, 482)
    full = (await client.post("/v1/chat/completions", json=chat(hilora={"explain": True}))).json()["hilora"]
    assert len(full["adapters"]) == 502
    assert "more" not in full


async def test_a_prompt_is_routed_without_an_answer(client: Any, desk: Any, chat: Any) -> None:
    for given in (chat(), {"input": "Hello."}, {"prompt": "Hello."}):
        response = await client.post("/v1/route", json=given)
        found = response.json()
        assert (found["object"], found["prompt_tokens"]) == ("hilora.route", 7)
        assert found["hilora"]["adapters"][0]["rocs"] == 3
        assert response.headers["x-hilora-adapters"] == "sst2,snli"
    short = (await client.post("/v1/route", json=chat(hilora={"explain": False}))).json()
    assert short["hilora"]["adapters"][0] == {"name": "sst2", "weight": 1.0}
    assert desk.closed == 0


async def test_models_are_those_that_the_caller_sees(client: Any, desk: Any) -> None:
    found = (await client.get("/v1/models")).json()
    assert [each["id"] for each in found["data"]] == ["auto", "base", "sst2", "snli"]
    assert found["data"][0]["created"] == desk.opened
    assert found["data"][2]["created"] == 1767323045
    for name in ("sst2", "2tss" * 4):
        assert (await client.get(f"/v1/models/{name}")).json() == found["data"][2]
    assert (await client.get("/v1/models/auto")).json() == found["data"][0]


async def test_a_model_is_named_by_its_name_or_hash(client: Any, desk: Any, chat: Any) -> None:
    for name in ("sst2", "2tss" * 4):
        assert (await client.post("/v1/chat/completions", json=chat(model=name))).json()["model"] == name
    assert [ask.model for ask in desk.asked] == ["sst2", "2tss" * 4]
    assert desk.asked[0].caller.tenant == "t"


async def test_fingerprints_tell_states_of_a_pool_apart(client: Any, chat: Any) -> None:
    one, other = [(await client.post("/v1/chat/completions", json=chat())).json() for _ in range(2)]
    assert one["system_fingerprint"] == other["system_fingerprint"]
    assert one["id"] != other["id"]


def test_a_fingerprint_depends_on_what_answers_depend_on() -> None:
    from hilora.serve.asked import Why
    from hilora.serve.openai.reasons import fingerprint

    told = [fingerprint(Why("m", (), (), "", 1, epoch, version)) for epoch in ("", "e") for version in ("1", "2")]
    assert len(set(told)) == 4
