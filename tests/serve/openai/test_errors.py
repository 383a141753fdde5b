"""Every error has OpenAI's form, and tells what to change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hilora.errors import InputError, PoolError
from hilora.serve import faults

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
HI = [{"role": "user", "content": "Hi"}]
PARTS = [{"role": "user", "content": [{"type": "text"}]}]


def checked(response: Any, status: int) -> Any:
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"messages": HI, "logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"messages": HI, "zap": 1}, "unknown_parameter", "zap"),
        ({"messages": HI, "zap\ud83d": 1}, "unknown_parameter", "zap\ud83d"),
        ({"messages": HI, "n": 0}, "invalid_value", "n"),
        ({"messages": HI, "n": 99}, "invalid_value", "n"),
        ({}, "missing_required_parameter", "messages"),
        ([], "invalid_value", None),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
        ({"messages": PARTS}, "missing_required_parameter", "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "invalid_value", "messages[0].content"),
        ({"messages": HI, "stop": [1]}, "invalid_value", "stop[0]"),
        ({"messages": HI, "hilora": {"options": {"k": [1]}}}, "invalid_value", "hilora.options.k"),
        ({"messages": HI, "hilora": {"allow": ["nobody"]}}, "invalid_value", None),
    ],
)  # fmt: skip
async def test_a_request_that_has_to_change_is_told_where(client: Any, given: Any, code: str, param: str) -> None:
    response = await client.post("/v1/chat/completions", content=json.dumps(given), headers=JSON)
    error = checked(response, 400)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


async def test_a_model_that_nobody_sees_is_not_found(client: Any, chat: Any) -> None:
    for stream in (False, True):
        error = checked(await client.post("/v1/chat/completions", json=chat(model="ss2", stream=stream)), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "Did you mean 'sst2'" in error["message"]
    assert checked(await client.post("/v1/route", json=chat(model="ss2")), 404)["code"] == "model_not_found"
    assert checked(await client.get("/v1/models/no/such"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("raised", "status", "code", "header"),
    [
        (faults.BusyError("Full.", 1.2), 429, "rate_limit_exceeded", ("retry-after", "2")),
        (faults.LateError("Late."), 504, "timeout", ("x-should-retry", "false")),
        (faults.ClosingError("Closing."), 503, "shutting_down", None),
        (faults.ForbiddenError("No."), 403, "insufficient_permissions", None),
        (faults.ServiceError("Long.", "context_length_exceeded", "messages"), 400, "context_length_exceeded", None),
        (InputError("Empty."), 400, "invalid_value", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_desk_refuses_is_told_before_a_stream_begins(
    client: Any, desk: Any, chat: Any, raised: Any, status: int, code: str, header: Any, stream: bool
) -> None:
    desk.refuses = raised
    response = await client.post("/v1/chat/completions", json=chat(stream=stream))
    error = checked(response, status)
    assert (error["code"], error["message"]) == (code, str(raised))
    assert header is None or response.headers[header[0]] == header[1]
    assert checked(await client.post("/v1/route", json=chat()), status)["code"] == code


async def test_a_long_prompt_is_named_as_it_came(client: Any, desk: Any, chat: Any) -> None:
    desk.refuses = faults.ServiceError("Long.", "context_length_exceeded", "messages")
    for path, given, param in (
        ("/v1/chat/completions", chat(), "messages"),
        ("/v1/completions", {"prompt": "Hi"}, "prompt"),
        ("/v1/route", {"input": "Hi"}, "input"),
    ):
        assert checked(await client.post(path, json=given), 400)["param"] == param


@pytest.mark.parametrize("raised", [RuntimeError("/secret/path"), PoolError("/secret/path")])
async def test_what_fails_inside_stays_inside(client: Any, desk: Any, chat: Any, raised: Any) -> None:
    for where in ("refuses", "fails"):
        setattr(desk, where, raised)
        response = await client.post("/v1/chat/completions", json=chat())
        error = checked(response, 500)
        assert error["type"] == "server_error"
        assert "secret" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
        setattr(desk, where, None)
    assert desk.closed == 1
    assert "secret" not in (await client.get("/fails")).text


async def test_an_error_in_a_stream_is_its_last_event(client: Any, desk: Any, chat: Any, caplog: Any) -> None:
    for raised, code, shown in (
        (faults.LateError("Too late."), "timeout", "Too late."),
        (RuntimeError("secret"), "internal_error", "failed"),
    ):
        desk.fails = raised
        response = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert response.status_code == 200
        head, last = response.text.rstrip().rsplit("event: error\n", 1)
        assert "data: {" in head
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == code
        assert shown in error["message"]
        assert "secret" not in response.text
    assert "secret" in caplog.text
    assert desk.closed == 2


async def test_tokens_are_looked_at_first(client: Any, chat: Any) -> None:
    for path, given in (("/v1/chat/completions", {"bad": 1}), ("/v1/completions", {}), ("/v1/route", {})):
        response = await client.post(path, json=given, headers={"Authorization": "Bearer wrong"})
        assert checked(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    response = await client.get("/v1/models", headers={"Authorization": "Bearer looker"})
    assert checked(response, 403)["code"] == "insufficient_permissions"


async def test_paths_methods_and_types_that_are_not_answered(client: Any) -> None:
    assert checked(await client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    response = await client.get("/v1/chat/completions")
    assert checked(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data; boundary=x"}, {}):
        response = await client.post("/v1/chat/completions", content=b'{"messages": []}', headers=headers)
        assert checked(response, 415)["code"] == "unsupported_media_type"
    for content in (b'{"messages": [', b"", b"\xff", b'{"n": ' + b"9" * 5000 + b"}"):
        response = await client.post("/v1/chat/completions", content=content, headers=JSON)
        checked(response, 400)


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
async def test_vllms_paths_say_what_to_use(client: Any, path: str) -> None:
    error = checked(await client.post(path, json={"lora_name": "x", "lora_path": "/etc"}), 404)
    assert "POST /v1/adapters" in error["message"]
