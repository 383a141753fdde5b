"""Adapters come, change and go while many ask: every answer is the one that its adapters give alone."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hilora.pool import Pool
from hilora.pool.lease import holders

REQUESTS, OPERATIONS = 250, 30


@pytest.fixture
def churn(monkeypatch: pytest.MonkeyPatch, quick_tuning: None) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("soaking.churn")


def test_while_adapters_come_and_go_every_request_ends_once_and_as_it_would_alone(churn: Any, bench: Any) -> None:
    things = churn.Tiny(bench)
    house = churn.House(things, things.router(Pool.open(things.folder), things.methods[0]))
    try:
        done = asyncio.run(asyncio.wait_for(churn.churned(house, REQUESTS, OPERATIONS, 0), 120))
        rows = list(churn.looked(house, done))
    finally:
        house.end()
    assert [text for row in rows for text in row["wrong"]] == []
    assert holders(things.folder) == []
    changes, requests, _, answers = [row["counts"] for row in rows]
    assert changes["operations"] == OPERATIONS
    assert min(requests[end] for end in ("answered", "refused", "left")) > 0
    assert answers["answers"] == requests["answered"]
    assert answers["versions of the pool"] > 3
    assert answers["epochs"] == 2
