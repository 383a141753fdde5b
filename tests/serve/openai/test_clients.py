"""OpenAI's own client, over a socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from hilora.serve import faults
from hilora.serve.openai import stream as streams

ROOT = Path(__file__).parents[3]
TEXT = "A tale\u2028of wörds 🙂"
HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def api(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="sesame", max_retries=0, timeout=20) as found:
        yield found


def test_chats(api: openai.OpenAI) -> None:
    found = api.chat.completions.create(
        model="auto", messages=HI, logprobs=True, top_logprobs=1, extra_body={"hilora": {"explain": True}}
    )
    assert found.choices[0].message.content == TEXT
    assert found.usage
    assert found.usage.total_tokens == 10
    logs = found.choices[0].logprobs
    assert logs is not None
    assert logs.content is not None
    assert logs.content[0].top_logprobs[0].token == "A "
    assert found.hilora["adapters"][0]["name"] == "sst2"  # type: ignore[attr-defined]
    assert found._request_id
    assert found._request_id.startswith("req_")
    again = [*HI, found.choices[0].message.model_dump(), *HI]
    assert api.chat.completions.create(model="auto", messages=again).choices[0].message.content == TEXT


def test_streams(api: openai.OpenAI) -> None:
    chunks = list(
        api.chat.completions.create(model="auto", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[0].hilora["adapters"][0]["name"] == "sst2"  # type: ignore[attr-defined]
    with api.chat.completions.stream(model="auto", messages=HI) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_streams_with_silences(api: openai.OpenAI, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SILENCE", 0.005)
    desk.pause = 0.02
    assert (
        streams.COMMENT
        in api.chat.completions.with_raw_response.create(model="auto", messages=HI, stream=True).http_response.read()
    )
    test_streams(api)


def test_completions_and_models(api: openai.OpenAI) -> None:
    assert api.completions.create(model="base", prompt="Hi", logprobs=0).choices[0].text == TEXT
    pieces = api.completions.create(model="base", prompt="Hi", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == TEXT
    assert [model.id for model in api.models.list()] == ["auto", "base", "sst2", "snli"]
    assert api.models.retrieve("snli").created == 1767323045


def test_errors(api: openai.OpenAI, desk: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="nobody", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(
            model="auto", messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(openai.AuthenticationError):
        api.with_options(api_key="wrong").models.list()
    desk.refuses = faults.BusyError("Full.", 3.0)
    with pytest.raises(openai.RateLimitError) as busy:
        api.chat.completions.create(model="auto", messages=HI)
    assert busy.value.response.headers["retry-after"] == "3"
    desk.refuses, desk.fails = None, faults.LateError("Too late.")
    stream = api.chat.completions.create(model="auto", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match=r"Too late\."):
        list(stream)


def closed(desk: Any) -> bool:
    end = time.monotonic() + 20
    while not desk.closed and time.monotonic() < end:
        time.sleep(0.01)
    return bool(desk.closed)


def test_a_client_that_closes_its_stream_ends_the_answer(api: openai.OpenAI, desk: Any) -> None:
    desk.stuck = True
    stream = api.chat.completions.create(model="auto", messages=HI, stream=True)
    next(iter(stream))
    assert not desk.closed
    stream.close()
    assert closed(desk)


def test_a_client_that_gives_up_waiting_ends_the_answer(api: openai.OpenAI, desk: Any) -> None:
    desk.stuck = True
    with pytest.raises(openai.APITimeoutError):
        api.with_options(timeout=0.2).chat.completions.create(model="auto", messages=HI)
    assert closed(desk)


def test_the_session_of_the_docs_is_what_the_example_asks(
    server: str, scripts: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers differ, for another service gives them here; all that is asked is served, but for the last."""

    def asked(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith((">>> ", "... ")) and "OpenAI(" not in line]

    monkeypatch.setenv("HILORA_TOKEN", "sesame")
    scripts.load("examples/openai_client.py").main(f"{server}/v1")
    printed = capsys.readouterr().out
    assert asked(printed) == asked((ROOT / "docs" / "serving-transcript.md").read_text())
    assert [line for line in printed.splitlines() if "Error" in line] == [printed.splitlines()[-1]]
    assert printed.splitlines()[-1].startswith("NotFoundError: Error code: 404")
