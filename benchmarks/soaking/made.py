"""Tiny things to shake: the same as the tests', and `hilora serve` over them in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import psutil

ROOT = Path(__file__).parents[2]
SECRET = "sesquipedalian"
"""A word that stands in every sample that is sent, and must not be found when its upload has ended."""
DATA = ("adapters", "canonical", "samples")
EXACT = ("--dtype", "float32")
"""Options: in half precision the most likely of two words that are near may depend on who shares a step, and PyTorch
on a CPU keeps what it has prepared for each shape of a product (LRU_CACHE_CAPACITY)."""
PROMPT = {"prompt": "abab baab abba", "temperature": 0, "max_tokens": 12, "hilora": {"explain": True}}


def tests_own(path: str) -> Any:
    """A module of the tests, which is no package."""
    spec = importlib.util.spec_from_file_location(f"soaking_{Path(path).parent.name}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts_of(seed: int) -> list[str]:
    """Samples of a task of their own: words of four letters of the alphabet, with the secret in front."""
    rng = Random(seed)
    letters = rng.sample("bcdefghijklnpqrstuvw", 4)
    words = ["".join(rng.choices(letters, k=4)) for _ in range(4)]
    return [f"{SECRET} {' '.join(rng.choices(words, k=5))}" for _ in range(12)]


@contextmanager
def bench(home: Path) -> Iterator[Any]:
    """A tiny pool, and adapters to send (`Bench` of tests/serve/conftest.py)."""
    tiny = tests_own("tests/conftest.py").Tiny
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        bert = tiny.bert(home / "bert", longest=120)
        yield tests_own("tests/serve/conftest.py").Bench(home, tiny, bert, stack)


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something to become true; what it is then."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"Not so within {seconds:g} seconds: {true}")
        time.sleep(0.002)
    return found


class Server:
    """`hilora serve` over a bench's pool, in a process of its own.

    Args:
        bench: makes pools and uploads.
        options: of the command.
        before: a command that starts it, as ("prlimit", "--nofile=64").
    """

    def __init__(self, bench: Any, options: Sequence[str] = (), before: Sequence[str] = ()) -> None:
        self.bench, self.pool = bench, bench.pool.path
        self.options, self.before = options, before
        self.base = bench.home / "base"
        if not self.base.exists():
            bench.tiny.model("llama").save_pretrained(self.base)
            bench.tiny.tokenizer().save_pretrained(self.base)
        self.log, self.client = (bench.home / "log").open("a+"), httpx2.Client()
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again; returns when it listens."""
        command = [*self.before, sys.executable, "-m", "hilora", "serve", "--pool", str(self.pool)]
        command += ["--base", str(self.base), "--port", "0", "--method", "hilora", *self.options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | {"COLUMNS": "300"}
        )
        assert self.process.stdout is not None
        with self.process.stdout as out:
            found = re.search(r"http://\S+:\d+", out.readline())
        assert found, self.said()[-2000:]
        self.client.close()
        self.url = found[0]
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def said(self) -> str:
        """Its log so far."""
        return Path(self.log.name).read_text()

    def kill(self) -> None:
        """As a machine that runs out of memory does."""
        self.process.kill()
        self.process.wait(30)

    def end(self) -> int:
        """As an operator does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        """Nothing of it stays."""
        if self.process.poll() is None:
            self.kill()
        self.client.close()
        self.log.close()

    def checks(self) -> list[psutil.Process]:
        """The processes that check uploads, or wait to."""
        found = psutil.Process(self.process.pid).children()
        return [each for each in found if "hilora.serve.check" in each.cmdline()]

    def send(self, name: str, seed: int, wait: int = 0) -> Any:
        """Upload an adapter that a seed makes, with the secret in its samples."""
        texts = [f"{SECRET} {text}" for text in self.bench.texts("delta", seed)]
        files = self.bench.form(seed, samples="\n".join(texts).encode())
        return self.client.post(f"/v1/adapters?wait={wait}", files=files, data={"name": name})

    def look(self, name: str) -> Any:
        """What it says of an adapter or an upload."""
        return self.client.get(f"/v1/adapters/{name}").json()

    def ask(self, model: str) -> Any:
        """An answer to the prompt."""
        return self.client.post("/v1/completions", json=PROMPT | {"model": model}).json()

    def holding(self, word: str) -> list[Path]:
        """Files below the pool in which a word stands."""
        found = []
        for path in self.pool.rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):
                found += [path] if word.encode() in path.read_bytes() else []
        return found

    def data(self) -> set[Path]:
        """What the pool keeps of adapters."""
        return {path for folder in DATA for path in (self.pool / folder).glob("*")}


@contextmanager
def server(bench: Any, options: Sequence[str] = (), before: Sequence[str] = ()) -> Iterator[Server]:
    """A server, while the context is open."""
    made = Server(bench, options, before)
    try:
        yield made
    finally:
        made.close()
