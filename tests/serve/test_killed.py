"""`kill -9` of a whole server: the next one on the same pool goes on, and nothing is lost or left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.serve.state import State


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("soaking.made")


@pytest.fixture
def server(made: Any, bench: Any) -> Iterator[Any]:
    with made.server(bench) as started:
        yield started


def check_well(made: Any, server: Any, *live: str) -> None:
    """A server that came after a killed one takes requests, and nothing of that one lies about."""
    ready = server.client.get("/readyz").json()
    assert (ready["status"], ready["waiting"], ready["running"]) == ("ready", 0, 0)
    assert len(holders(server.pool)) == len(list((server.pool / "leases").iterdir())) == 1
    assert server.holding(made.SECRET) == []
    assert State(server.pool).open_uploads() == []
    for name in ("alpha", *live):
        part = server.look(name)
        answer = server.ask(name)
        assert [each["hash"] for each in answer["hilora"]["adapters"]] == [part["hash"]]
        assert answer["choices"][0]["finish_reason"]
    assert server.ask("auto")["hilora"]["adapters"]


def check_whole(made: Any, server: Any) -> None:
    """When it has ended, nothing is wrong with the pool, and nothing of an adapter is to be deleted."""
    assert server.end() == 0
    pool = Pool.open(server.pool)
    assert [entry.name for entry, wrong in pool.check() if wrong] == []
    assert [path for path in pool.prune() if path.parent.name in made.DATA] == []  # epochs follow each other
    assert holders(server.pool) == []
    assert server.bench.left() == []
    assert list(server.pool.rglob(".partial-*")) == []


def opened(made: Any, server: Any, model: str) -> Any:
    """Lines of an answer that has begun."""
    given = made.PROMPT | {"model": model, "max_tokens": 200, "stream": True}
    request = server.client.build_request("POST", "/v1/completions", json=given)
    lines = server.client.send(request, stream=True).iter_lines()
    assert json.loads(next(lines).removeprefix("data: "))["choices"]
    return lines


def is_cut(lines: Any) -> bool:
    """Whether an answer breaks off."""
    try:
        return "data: [DONE]" not in list(lines)
    except httpx2.HTTPError:
        return True


def test_whenever_a_server_is_killed_the_next_one_goes_on(made: Any, server: Any) -> None:
    want, before = server.ask("alpha")["choices"], server.data()

    (check,) = server.checks()
    check.suspend()  # while a check runs, and answers stream
    sent = server.send("new", 7)
    assert sent.status_code == 202
    made.until(lambda: server.look("new")["state"] == "checking")
    streams = [opened(made, server, model) for model in ("auto", "base", "alpha", "beta")]
    assert server.holding(made.SECRET)
    server.kill()
    assert sum(is_cut(lines) for lines in streams) > 0
    check.resume()
    made.until(lambda: not check.is_running())
    assert server.data() == before
    server.start()
    told = server.look("new")
    assert (told["state"], told["upload"]["id"]) == ("refused", sent.json()["id"])
    assert "interrupted" in told["reason"]
    assert server.ask("alpha")["choices"] == want
    check_well(made, server)

    sent = server.send("new", 7, wait=60)
    assert sent.status_code == 201
    server.kill()  # when whoever sent it has just heard that it is live
    server.start()
    check_live(server, "new", sent)
    check_well(made, server, "new")

    sent = server.send("other", 8)
    made.until(lambda: '"name": "other"' in (server.pool / "pool.json").read_text())
    server.kill()  # when the manifest names it, and nobody has been told
    server.start()
    check_live(server, "other", sent)
    check_well(made, server, "new", "other")
    check_whole(made, server)


def check_live(server: Any, name: str, sent: Any) -> None:
    """An upload, and the adapter that it has become."""
    told = server.look(name)
    (entry,) = [each for each in Pool.open(server.pool).entries if each.name == name]
    assert (told["state"], told["hash"], told["upload"]["hash"]) == ("live", entry.hash, entry.hash)
    assert (told["upload"]["state"], told["upload"]["id"]) == ("live", sent.json()["id"])
