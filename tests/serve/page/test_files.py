"""What the page mounts, attacked: a handful of fixed texts, and nothing else, for whoever asks in whatever way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from hilora import HiLoRA
from hilora.serve.app import make_app
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.faults import UnauthorizedError
from hilora.serve.limits import Limits
from hilora.serve.page import FILES, POLICY, page_routes

PATHS = ["/", "/ui", *(f"/ui/{name}" for name in FILES)]
LIMITS = replace(Limits(), body=1000, upload=2000)
HERE = "http://127.0.0.1"
OUTSIDE = [
    "../__init__.py",
    "..%2f__init__.py",
    "%2e%2e/%2e%2e/app.py",
    "..%5capp.py",
    "....//app.py",
    "main.js/../../app.py",
    "main.js/",
    "main.js%00.css",
    "__init__.py",
    "__pycache__",
    "",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "MAIN.JS",
]


@pytest.fixture
def client(shared_pool: Any, joined: Any, embedder: Any) -> Iterator[TestClient]:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=joined, embedder=embedder)

    def nobody(request: Request) -> Caller:
        raise UnauthorizedError("A token is needed.")

    with ExitStack() as stack:
        app = make_app(PoolDesk(router, LIMITS), LIMITS, nobody)
        assert [getattr(route, "path", "") for route in page_routes().routes] == PATHS
        yield stack.enter_context(
            TestClient(app, base_url=HERE, raise_server_exceptions=False, follow_redirects=False)
        )


def test_its_files_are_there_for_whoever_has_no_token_yet(client: TestClient) -> None:
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == (307 if path == "/" else 200)
        assert path == "/" or answer.headers["content-type"].startswith("text/")
        assert "set-cookie" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get("/ui").headers["content-security-policy"] == POLICY
    assert client.get("/").headers["location"] == "ui"
    assert client.get("/v1/about").status_code == 401  # all that it shows is the API's to give


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_other_file_is_read(client: TestClient, name: str) -> None:
    answer = client.get(f"{HERE}/ui/{name}")
    assert answer.status_code in (307, 404)
    assert answer.status_code == 404 or answer.headers["location"].removeprefix(HERE) in PATHS  # without the last /
    assert b"import" not in answer.content


def test_nothing_can_be_sent_to_it(client: TestClient) -> None:
    for path in PATHS:
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
            assert client.request(method, path).status_code == 405
        files = {"file": ("x", b"x" * 500)}
        assert client.post(path, files=files).status_code == 405
        assert client.post(path, files={"file": ("x", b"x" * 3000)}).status_code == 413
        assert client.get(path, params={"path": "/etc/passwd", "next": "http://evil.example"}).content == (
            client.get(path).content
        )


def test_pages_of_other_sites_get_nothing(client: TestClient) -> None:
    for path in PATHS:
        assert client.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403
        assert client.get(path, headers={"Origin": HERE}).status_code in (200, 307)


def test_it_names_no_other_host_and_makes_no_markup_of_texts(client: TestClient) -> None:
    assert "frame-ancestors 'none'" in POLICY
    assert "unsafe" not in POLICY
    for path in PATHS[1:]:
        text = client.get(path).text
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", text))
        assert hosts <= {"http://www.w3.org"}  # the name of SVG
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
        assert not re.search(r"\son\w+=|style=|javascript:", text)
