"""What is shaken: pools with a base model, prompts for them, and adapters that come and go."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from serve import prompts_of
from tokenizers import decoders
from uploads import contribution

from hilora import HiLoRA, Pool
from hilora.base.models import load_base
from hilora.engine.probe import TOLERANCE
from hilora.pool.view import PoolView
from hilora.serve.checker import Checker

FLAN_MINI = Path(__file__).parents[2] / "pools" / "flan-mini"


class Tiny:
    """A random model in fp64, with random adapters: answers are compared bit by bit.

    Args:
        bench: makes pools and uploads (`Bench` of tests/serve/conftest.py).
    """

    path, tolerance, tokens = "/v1/completions", 0.0, (4, 14)
    methods = ("hilora", "hilora-plus", "selection", "fusion")
    coming: ClassVar[Mapping[str, str]] = {"one": "delta", "two": "alpha", "three": "gamma"}
    """Adapters that come and go, each with the task of its samples."""
    seeds = range(20, 26)

    def __init__(self, bench: Any) -> None:
        self.bench, self.folder, self.staying = bench, bench.pool.path, tuple(bench.pool.names)
        self.tokenizer = copy.deepcopy(bench.tiny.tokenizer())
        self.tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # what is said grows piece by piece

    def router(self, view: PoolView, method: str) -> HiLoRA:
        """One with a model of its own."""
        model, bench = self.bench.tiny.model("llama"), self.bench
        return HiLoRA.from_pretrained(
            model, view, method, tokenizer=self.tokenizer, embedder=bench.embedder, kv_memory="64MB"
        )

    def checker(self) -> Checker:
        """Who checks uploads: in this process, which is quicker."""
        return self.bench.inside()  # type: ignore[no-any-return]

    def prompt(self, random: Random) -> str:
        """Any of a few, of any task."""
        texts = self.bench.texts(random.choice(["alpha", "beta", "gamma", "delta"]), random.randrange(3))
        return str(random.choice(texts))

    def given(self, prompt: str) -> dict[str, Any]:
        """A request's part about the prompt; `asked`: the same for the library."""
        return {"prompt": prompt}

    def asked(self, prompt: str) -> Any:
        """A prompt for the library."""
        return prompt

    def said(self, choice: Any) -> str:
        """What an answer, or a piece of it, says."""
        return str(choice["text"])

    def form(self, name: str, seed: int) -> dict[str, Any]:
        """Files of an upload."""
        return self.bench.form(seed, self.coming[name])  # type: ignore[no-any-return]

    def adapter(self, name: str, seed: int) -> tuple[Path, list[str]]:
        """The same for the library: its folder, and its samples."""
        return self.bench.folder(seed), self.bench.texts(self.coming[name], seed)

    def samples(self, name: str) -> list[str]:
        """Texts of an adapter's task."""
        return self.bench.texts(self.coming.get(name, name), 0)  # type: ignore[no-any-return]


class Default:
    """flan-mini on its own base in fp32, where sums over a batch round otherwise than those over a row.

    Args:
        home: for a copy of the pool, and adapters like its own, with their numbers drawn anew.
    """

    path, tolerance, tokens = "/v1/chat/completions", TOLERANCE[torch.float32], (3, 10)
    methods = ("hilora", "hilora-plus", "selection", "mixture", "fusion")
    coming: ClassVar[Mapping[str, str]] = dict.fromkeys(("one", "two", "three"), "")
    seeds = range(3)

    def __init__(self, home: Path) -> None:
        self.folder, self.home = home / "pool", home
        shutil.copytree(FLAN_MINI, self.folder, ignore=shutil.ignore_patterns("serve"))
        pool = Pool.open(self.folder)
        self.staying = tuple(pool.names[::10])
        self.tokenizer: Any = None
        self.embedder = pool.embedder.load(pool.path)
        self.model: Any = None
        self.prompts = [
            *prompts_of(40, 12, 0),
            *(
                f"Which station of the night tram {name} comes after stop {i}?"
                for name in self.coming
                for i in range(8)
            ),
        ]

    def router(self, view: PoolView, method: str) -> HiLoRA:
        """The first has a model of its own, all others share one."""
        if self.tokenizer is None:
            first = HiLoRA.from_pretrained(None, view, method, dtype="fp32", embedder=self.embedder)
            self.tokenizer = first.tokenizer
            return first
        if self.model is None:
            self.model, _ = load_base(view.base.name, dtype=torch.float32)
        return HiLoRA.from_pretrained(
            self.model, view, method, tokenizer=self.tokenizer, embedder=self.embedder, kv_memory="1GB"
        )

    def checker(self) -> Checker:
        """Who checks uploads: another process, as in a server."""
        return Checker(pool=self.folder)

    def prompt(self, random: Random) -> str:
        """Any of them."""
        return random.choice(self.prompts)

    def given(self, prompt: str) -> dict[str, Any]:
        """A request's part about the prompt; `asked`: the same for the library."""
        return {"messages": self.asked(prompt)}

    def asked(self, prompt: str) -> Any:
        """A prompt for the library."""
        return [{"role": "user", "content": prompt}]

    def said(self, choice: Any) -> str:
        """What an answer, or a piece of it, says."""
        return (choice.get("message") or choice["delta"]).get("content") or ""

    def form(self, name: str, seed: int) -> dict[str, Any]:
        """Files of an upload."""
        folder, _ = self.adapter(name, seed)
        files = {"config": "adapter_config.json", "weights": "adapter_model.safetensors", "samples": "samples.jsonl"}
        return {field: (file, (folder / file).read_bytes()) for field, file in files.items()}

    def adapter(self, name: str, seed: int) -> tuple[Path, list[str]]:
        """The same for the library: its folder, and its samples."""
        folder = self.home / f"{name}.{seed}"
        if not folder.exists():
            texts = contribution(Pool.open(FLAN_MINI), f"{name}.{seed}", folder)["samples"]
            assert isinstance(texts, bytes)
            (folder / "samples.jsonl").write_bytes(texts)
        lines = (folder / "samples.jsonl").read_text().splitlines()
        return folder, [json.loads(line)["inputs"] for line in lines]

    def samples(self, name: str) -> list[str]:
        """Texts of an adapter's task."""
        return [f"{name}: example {i}" for i in range(20)]


Things = Tiny | Default
