"""The benchmark of a gateway runs from start to end on something tiny. No speed is asserted."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_what_a_gateway_adds_is_measured(
    scripts: Any, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = scripts.load("benchmarks/gateway.py")
    monkeypatch.setitem(sys.modules, "gateway", script)  # as its backend's process imports it

    @contextlib.contextmanager
    def gateway(pool: str, method: str, port: int) -> Iterator[int]:
        running = opened(f"http://127.0.0.1:{port}", method=method)
        running.wait(lambda: running.client.get("/readyz").status_code == 200, 60)
        yield running.listening.getsockname()[1]

    monkeypatch.setattr(script, "gateway", gateway)
    out = tmp_path / "rows.jsonl"
    scripts.run(script, "--rounds", "3", "--chunks", "3", "--clients", "2", "--json", out)
    setup, *rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert setup["method"] == "selection"
    assert [row["case"] for row in rows] == ["one prompt", "several adapters", "stream", "clients", "clients"]
    for row in rows[:3]:
        assert row["direct_ms"]["p50"] > 0
        assert row["routing_ms"]["p50"] > 0
