"""A tiny pool with an embedder that another process can load, and a service of uploads over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.pool import Pool
from hilora.serve.access import Doorkeeper
from hilora.serve.api_adapters import adapter_routes
from hilora.serve.check import Task, verdict
from hilora.serve.checker import Checker, entry_of
from hilora.serve.limits import Limits
from hilora.serve.openai.errors import install_errors
from hilora.serve.openai.guard import Guard
from hilora.serve.publish import Publisher
from hilora.serve.state import State
from hilora.serve.uploads import Uploads

TASKS = ("alpha", "beta", "gamma")


class Inside(Checker):
    """Checks in this process, which is quicker."""

    def __call__(self, task: Task) -> Any:
        return entry_of(json.dumps(verdict(task)).encode(), 0, task)


class Bench:
    """A pool, adapters to send, and a service.

    Args:
        home: a folder.
        tiny: makers of tiny things.
        bert: an embedder's folder.
    """

    inside = Inside

    def __init__(self, home: Path, tiny: Any, bert: Path, stack: ExitStack) -> None:
        self.home, self.tiny, self.stack = home, tiny, stack
        model = tiny.model("llama")
        self.embedder = Embedder(str(bert))
        self.sites = tiny.sites(model, "llama")
        base = describe_model("tiny", model, tiny.tokenizer())
        self.pool = Pool.create(home / "pool", base, describe_embedder(self.embedder))
        for seed, task in enumerate(TASKS):
            self.pool.add(task, self.folder(seed), self.texts(task, seed), self.embedder)
        self.client: TestClient
        self.uploads: Uploads
        self.state: State
        self.view = Pool.open(self.pool.path)
        self.seen: list[int] = []

    def texts(self, task: str, seed: int) -> list[str]:
        """Random texts of a task, in letters that the embedder knows."""
        return [text.translate(str.maketrans("123", "pqr")) for text in self.tiny.texts(task, 12, seed)]

    def folder(self, seed: int, **options: Any) -> Path:
        """A PEFT folder."""
        path = self.home / "sent" / f"{seed}-{len(options)}"
        return path if path.exists() else self.tiny.adapter(path, self.sites, rank=2, seed=seed, **options)

    def serve(self, limits: Limits | None = None, *, is_open: bool = True, checker: Checker | None = None) -> None:
        """Start a service, as its process would."""
        limits = limits or Limits()
        self.state = State(self.pool.path)

        def change() -> None:
            self.view = Pool.open(self.pool.path)
            self.seen.append(self.view.version)

        publisher = Publisher(self.pool.path, limits, change, lambda: self.view)
        self.uploads = Uploads(publisher, self.state, limits, checker or Inside())
        app = FastAPI()

        install_errors(app)
        app.add_middleware(Guard, limits=limits)
        app.include_router(adapter_routes(self.uploads, Doorkeeper(self.state, is_open, limits.requests_per_minute)))
        self.uploads.open()
        self.stack.callback(self.uploads.close)
        self.client = self.stack.enter_context(TestClient(app, raise_server_exceptions=False))

    def token(self, tenant: str, *scopes: str) -> dict[str, str]:
        """Headers of a caller."""
        secret, _ = self.state.add_token(tenant, scopes or ("use", "upload"))
        return {"Authorization": f"Bearer {secret}"}

    def form(self, seed: int = 7, task: str = "delta", **changes: Any) -> dict[str, Any]:
        """Files of an upload: field -> (file name, bytes); None leaves one out."""
        folder = self.folder(seed)
        texts = self.texts(task, seed)
        found: dict[str, Any] = {
            "config": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
            "weights": ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes()),
            "samples": ("samples.jsonl", "".join(json.dumps({"inputs": t}) + "\n" for t in texts).encode()),
        }
        found |= {name: value if isinstance(value, tuple) else (name, value) for name, value in changes.items()}
        return {name: value for name, value in found.items() if value != (name, None)}

    def weights(self, change: Callable[[dict[str, torch.Tensor]], Any], seed: int = 7) -> bytes:
        """A weights file with something wrong."""
        tensors = load_file(self.folder(seed) / "adapter_model.safetensors")
        change(tensors)
        path = self.home / "wrong.safetensors"
        save_file(tensors, path)
        return path.read_bytes()

    def config(self, **changes: Any) -> bytes:
        """An adapter's configuration with something wrong."""
        raw = json.loads((self.folder(7) / "adapter_config.json").read_text())
        return json.dumps(raw | changes).encode()

    def send(self, name: str = "new", files: Any = None, *, who: Any = None, put: bool = False, **words: Any) -> Any:
        """Upload, and wait until it is checked."""
        call = self.client.put if put else self.client.post
        path = f"/v1/adapters/{name}" if put else "/v1/adapters"
        given = words if put else {"name": name, **words}
        files = self.form() if files is None else files
        return call(f"{path}?wait=60", files=files, data=given, headers=who)

    def names(self, who: Any = None) -> list[str]:
        """What a caller sees."""
        found = self.client.get("/v1/adapters", headers=who)
        assert found.status_code == 200, found.text
        return [each["name"] for each in found.json()["data"]]

    def is_well(self, who: Any = None) -> bool:
        """Whether it still takes a good adapter, and nothing lies about."""
        sent = self.send("good", self.form(99), who=who)
        gone = self.client.delete("/v1/adapters/good", headers=who)
        return (sent.status_code, gone.status_code, self.left()) == (201, 200, [])

    def left(self) -> list[Path]:
        """Files of uploads that are still there."""
        return [path for path in (self.pool.path / "serve" / "incoming").rglob("*") if path.is_file()]


@pytest.fixture(scope="session")
def bert(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("embedder") / "bert", longest=120)


@pytest.fixture
def bench(tmp_path: Path, tiny: Any, bert: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, tiny, bert, stack)
