"""Pages of other sites reach no server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hilora.serve.origin import SameOrigin


async def answered(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(local: bool, **headers: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(SameOrigin(answered, local=local)(scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_this_machines_own_names_are_served(host: str) -> None:
    assert status(True, host=host) == 200
    assert status(True, host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "192.168.1.5:8000"])
def test_other_names_are_served_only_where_tokens_are_needed(host: str) -> None:
    assert status(True, host=host) == 403
    assert status(False, host=host) == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:8000.evil"]
)
def test_pages_of_other_sites_are_refused(origin: str) -> None:
    for local in (True, False):
        assert status(local, host="127.0.0.1:8000", origin=origin) == 403
