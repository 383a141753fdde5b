"""`hilora serve` as people run it: a process, the embedded default, the official client, an orderly end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from openai import BadRequestError, OpenAI
from typer.testing import CliRunner

from hilora import HiLoRA
from hilora.cli.serve import app
from hilora.pool.pool import Pool
from hilora.serve.state import State

ROOT = Path(__file__).parents[2]
SPACES = "Please add spaces between words: Thechildrenwalkedtoschoolintherain."
pytestmark = pytest.mark.default


class Served:
    """A server in a process of its own.

    Args:
        pool: what it serves.
    """

    def __init__(self, pool: Path, *options: str) -> None:
        command = [sys.executable, "-m", "hilora", "serve", "--pool", str(pool), "--port", "0", *options]
        self.log = (pool.parent / "log").open("w+")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | {"COLUMNS": "200"}
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://\S+:\d+", said)
        assert found, (said, self.logged())
        self.url = found[0]
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def logged(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return answer.read().decode()

    def ask(self, text: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(messages=messages, **{"model": "auto", "max_tokens": 16} | options)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.client.close()
        return code


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pool = tmp_path_factory.mktemp("served") / "pool"
    shutil.copytree(ROOT / "pools" / "flan-mini", pool)
    made = Served(pool, "--new-tokens", "24")
    yield made
    if made.process.poll() is None:
        made.end()
    made.log.close()


def test_the_official_client_is_answered_with_reasons(served: Served) -> None:
    answer = served.ask(SPACES)
    assert answer.choices[0].message.content == "The children walked to school in the rain."
    assert [each["name"] for each in answer.hilora["adapters"]] == ["word_segment"]
    assert answer.usage.completion_tokens > 3
    chunks = list(served.ask(SPACES, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == answer.choices[0].message.content
    assert len(chunks) > 4
    pinned = served.ask("What is 127 + 250?", model="arithmetic")
    assert pinned.choices[0].message.content == "377"
    assert served.ask("Hello", model="base").hilora["adapters"] == []
    with pytest.raises(BadRequestError) as caught:
        served.ask("Hello", max_tokens=9000)
    assert caught.value.code == "context_length_exceeded"


def test_what_the_command_line_does_to_a_served_pool_is_served_a_moment_later(served: Served) -> None:
    pool = Pool.open(Path(served.log.name).parent / "pool")
    names = {model.id for model in served.client.models.list()}
    assert {"auto", "base", "word_segment"} <= names
    pool.enable("word_segment", False)
    for _ in range(100):
        found = json.loads(served.get("/readyz"))
        if found["pool_version"] == pool.version:
            break
        time.sleep(0.1)
    else:
        pytest.fail(str(found))
    assert all(each["name"] != "word_segment" for each in served.ask(SPACES).hilora["adapters"])
    pool.enable("word_segment")


def test_it_is_seen_from_outside_and_ends_in_order(served: Served) -> None:
    served.ask(SPACES)
    page = served.get("/metrics")
    assert float(re.findall(r"^hilora_prompt_tokens_total (\S+)", page, re.M)[0]) > 0
    assert 'hilora_adapter_prompts_total{adapter="word_segment"}' in page
    assert json.loads(served.get("/readyz"))["lane"] == "joining"
    assert served.end() == 0
    lines = [json.loads(line) for line in served.logged().splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/v1/chat/completions" and line["status"] == 200 for line in lines)
    assert "childrenwalked" not in served.logged()  # no prompts


def test_without_uploads_nothing_of_the_pool_is_made_or_changed(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(ROOT / "pools" / "flan-mini", pool)

    def seen() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in pool.rglob("*")
            if path.is_file() and path.parent.name != "leases"
        }

    before = seen()
    served = Served(pool, "--no-uploads", "--new-tokens", "24")
    try:
        assert served.ask(SPACES).hilora["adapters"][0]["name"] == "word_segment"
        assert "hilora_uploads_total" in served.get("/metrics")
        assert seen() == before
    finally:
        code = served.end()
        served.log.close()
    assert code == 0
    assert seen() == before
    assert not (pool / "serve").exists()
    assert not (pool / "leases").exists()


def test_a_server_opens_its_state_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, opened = tmp_path / "pool", []
    shutil.copytree(ROOT / "pools" / "flan-mini", pool, copy_function=os.link)

    class Once(State):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            opened.append(self)

    def stop(router: Any, settings: Any, state: State, say: Any) -> None:
        assert opened == [state]
        assert settings.uploads

    monkeypatch.setattr("hilora.serve.run.State", Once)
    monkeypatch.setattr("hilora.serve.run.serve", stop)
    monkeypatch.setattr(HiLoRA, "from_pretrained", Mock())
    done = CliRunner().invoke(app, ["--pool", str(pool)])
    assert (done.exit_code, len(opened)) == (0, 1), done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--method", "arrow"], "--no-uploads"),
        (["--methods", "hilora,ensemble"], "--no-uploads"),
        (["--compile", "stop"], "step"),
        (["--compile", "step", "--compile-rows", "two"], "--compile-rows"),
        (["--compile-slots", "4"], "--compile step"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    options: list[str], said: str, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(ROOT / "pools" / "flan-mini", pool, copy_function=os.link)
    command = [sys.executable, "-m", "hilora", "serve", "--pool", str(pool), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
