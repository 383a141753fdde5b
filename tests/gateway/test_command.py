"""`hilora gateway` as people run it: a process, the embedded default pool, an orderly end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from hilora.cli.app import app
from hilora.cli.gateway import missing
from hilora.pool.pool import Pool

ROOT = Path(__file__).parents[2]
SPACES = "Please add spaces between words: Thechildrenwalkedtoschoolintherain."


@pytest.mark.default
def test_it_serves_from_the_command_line_and_ends_in_order(fakes: Any, tmp_path: Path) -> None:
    fake = fakes(root="models/SmolLM2-135M", max_rank=16)
    command = [sys.executable, "-m", "hilora", "gateway", "--pool", str(ROOT / "pools" / "flan-mini"), "--port", "0"]
    command += ["--backend", fake.url, "--adapters", str(tmp_path / "adapters"), "--max-lora-rank", "16"]
    with (tmp_path / "log").open("w+") as log:
        env = os.environ | {"COLUMNS": "200", "HILORA_BACKEND_KEY": "a-secret"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        assert process.stdout is not None
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert found, (tmp_path / "log").read_text()
        body = {"model": "auto", "messages": [{"role": "user", "content": SPACES}]}
        with httpx2.Client(base_url=found[0], timeout=60, trust_env=False) as client:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.headers["x-hilora-adapters"] == "word_segment"
            assert client.get("/metrics").status_code == client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    told = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/v1/chat/completions" and line["status"] == 200 for line in lines)
    assert "childrenwalked" not in told
    assert "a-secret" not in told


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["gateway", *arguments])
    return result.exit_code, str(result.exception or result.output)


def test_what_is_not_given_or_makes_no_sense_is_said(pool: Pool, tmp_path: Path) -> None:
    given = "--pool", str(pool.path)
    adapters = "--adapters", str(tmp_path / "a")
    assert "Give --adapters" in run(*given)[1]
    assert "Give --adapters" in run("export", *given)[1]
    assert "needs a --backend" in run(*given, *adapters, "--port", "0")[1]
    for method, option, told in (
        ("hilora", "k=3", "gamma 0.4 chooses ROCs"),
        ("arrow", "k=3", "is not a fixed sum"),
        ("mixtur", "k=3", "Did you mean 'mixture'"),
        ("mixture", "kk=3", "Did you mean 'k'"),
    ):
        assert told in run(*given, *adapters, "--backend", "http://x", "-m", method, "-o", option, "--port", "0")[1]
    assert "hilora[gateway]" in str(missing(ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")))


def test_a_pool_is_written_for_a_vllm_that_loads_nothing(pool: Pool, tmp_path: Path) -> None:
    given = "export", "--pool", str(pool.path), "--adapters"
    code, told = run(*given, str(tmp_path / "a"), "--adapters-at", "/mnt/a/")
    assert code == 0, told
    written = {path.name for path in (tmp_path / "a").iterdir()}
    assert len(written) == 4
    assert set(re.findall(r"(hilora-\w+)=/mnt/a/\1\b", told)) == written
    pool.enable("alpha", False)
    code, told = run(*given, str(tmp_path / "b"), "--base", "/models/tiny")
    assert len(list((tmp_path / "b").iterdir())) == 3
    config = json.loads(next((tmp_path / "b").rglob("adapter_config.json")).read_text())
    assert config["base_model_name_or_path"] == "/models/tiny"
