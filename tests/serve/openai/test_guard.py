"""What every request passes first."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hilora.serve.openai.guard import too_deep

JSON = {"Content-Type": "application/json"}


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for place in range(0, len(body), 1000):
        yield body[place : place + 1000]


@pytest.mark.anyio
@pytest.mark.parametrize("length", [True, False])
async def test_large_bodies_are_refused_with_or_without_their_length(client: Any, chat: Any, length: bool) -> None:
    for size, status in ((90_000, 200), (100_001, 413)):
        body = json.dumps(chat(user="x" * size)).encode()
        response = await client.post(
            "/v1/chat/completions", content=body if length else in_pieces(body), headers=JSON
        )
        assert response.status_code == status
    assert response.json()["error"]["code"] == "request_too_large"
    assert response.headers["connection"] == "close"


@pytest.mark.anyio
async def test_uploads_have_a_bound_of_their_own(client: Any) -> None:
    assert (await client.post("/up/files", content=in_pieces(b"x" * 200_000))).json() == {"bytes": 200_000}
    for body in (b"x" * 300_001, in_pieces(b"x" * 300_001)):
        response = await client.post("/up/files", content=body)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.anyio
async def test_nested_bodies_are_refused(client: Any, chat: Any) -> None:
    nested: Any = 1
    for _ in range(15):
        nested = [nested]
    for given, status in ((nested, 200), ([nested], 400)):
        response = await client.post("/v1/chat/completions", json=chat(metadata=given))
        assert response.status_code == status
    assert "16" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        (b"[[[]]]", False),
        (b"[[[[]]]]", True),
        (b'{"a": [{"b": [1]}]}', True),
        (b'{"a": "[[[[[[{{{{"}', False),
        (b'{"a": "\\"[[[[", "b": "\\\\"}', False),
        (b"[" * 1_000_000, True),
        (b'"' + b'\\"' * 1_000_000, False),
        (b'"' * 999_999 + b"[[[[]]]]", False),
        (b"[]" * 1_000_000, False),
        (b'{"a', False),
    ],
)
def test_depth_is_that_of_brackets_outside_of_texts(body: bytes, deep: bool) -> None:
    assert too_deep(body, 3) == deep


@pytest.mark.anyio
async def test_headers_are_bounded_and_bodies_come_as_they_are(client: Any) -> None:
    response = await client.get("/v1/models", headers={"X-Long": "x" * 17_000})
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")
    response = await client.post("/v1/chat/completions", content=b"x", headers=JSON | {"Content-Encoding": "gzip"})
    assert response.status_code == 415


@pytest.mark.anyio
async def test_every_response_has_an_id_and_headers_that_browsers_obey(client: Any) -> None:
    for path in ("/v1/models", "/v1/nothing", "/docs", "/fails"):
        response = await client.get(path)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert ("script-src" in response.headers["content-security-policy"]) == (path == "/docs")
        assert response.headers["x-request-id"].startswith("req_")
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.anyio
async def test_an_id_of_the_clients_own_is_kept_if_it_is_one(client: Any) -> None:
    for given, kept in (("my-id.1", True), ("a b", False), ("x" * 65, False), ("<script>", False)):
        response = await client.get("/v1/models", headers={"X-Request-Id": given})
        assert (response.headers["x-request-id"] == given) == kept


@pytest.mark.anyio
async def test_what_the_page_of_the_api_loads_is_allowed(client: Any) -> None:
    response = await client.get("/docs")
    hosts = {part.split("/")[2] for part in response.text.split('"') if part.startswith("https://")}
    assert hosts
    assert all(f"https://{host}" in response.headers["content-security-policy"] for host in hosts)
