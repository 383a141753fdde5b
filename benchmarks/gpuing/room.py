"""What is measured on: a random base, made where it computes, a tokenizer, an embedder, pools of random adapters."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import random_factors

from gpuing.sizes import Size
from hilora import HiLoRA, Pool
from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.base.models import quiet_loading
from hilora.bench.workload import Workload, make_workload
from hilora.pool import store
from hilora.pool.export import write_peft
from hilora.pool.folder import PoolFolder
from hilora.pool.trained import Trained, trained_path
from hilora.pool.view import PoolView

NAME = "random-base"
SAMPLES = 20
OWN_WORDS, WORDS = 12, 300
"""Words of a task, and all from which these are: tasks are told apart, and some are nearer than others."""
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LLAMA = ("<pad>", "<eos>", "<unk>")


class Room:
    """Everything that measurements share, each made when it is first asked for.

    Args:
        size: how large.
        folder: for pools and embedder.
        device: of the base.
        seed: of every random number.
    """

    def __init__(self, size: Size, folder: Path, device: str, seed: int) -> None:
        self.size, self.folder, self.device, self.seed = size, folder, torch.device(device), seed
        self._pools: dict[tuple[int, Sequence[str], int], Pool] = {}

    @property
    def on_card(self) -> bool:
        """Whether the base computes on a CUDA device."""
        return self.device.type == "cuda"

    @cached_property
    def tokenizer(self) -> Any:
        """A word, a token."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(_vocabulary(LLAMA, self.size.base), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )

    @cached_property
    def pristine(self) -> Any:
        """The base, which nobody runs: see `twin`."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.manual_seed(self.seed)
        ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
        config = LlamaConfig(**self.size.base, **ends, max_position_embeddings=4096)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.size.dtype))
        return model.eval().requires_grad_(False)

    def twin(self) -> Any:
        """A model of its own that others may hook, pack or compile; the weights are the same memory."""
        own = {id(p): torch.nn.Parameter(p.data, requires_grad=False) for p in self.pristine.parameters()}
        return copy.deepcopy(self.pristine, own)

    @cached_property
    def ours(self) -> Any:
        """The model of hilora's eager routers."""
        return self.twin()

    @cached_property
    def embedder_folder(self) -> Path:
        """A random BERT in the layout of sentence-transformers."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        folder = self.folder / "embedder"
        torch.manual_seed(self.seed)
        model = BertModel(BertConfig(**self.size.embedder), add_pooling_layer=False)
        for shared in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
            torch.nn.init.zeros_(shared.weight)  # so that texts of other words are other embeddings
        with quiet_loading():
            model.save_pretrained(folder)
        tokenizer = Tokenizer(models.WordLevel(_vocabulary(BERT, self.size.embedder), unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        ).save_pretrained(folder)
        parts = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
        (folder / "modules.json").write_text(json.dumps(parts))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        return folder

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder, as a router of the base loads it."""
        return self.router("base", self.pool()).planner.embedder

    def texts(self, task: int, count: int, seed: int) -> list[str]:
        """Texts of a task, of its own words."""
        words = [word for word in self.tokenizer.get_vocab() if word[0] == "w"]
        own = np.random.default_rng([self.seed, task]).choice(sorted(words)[:WORDS], OWN_WORDS, replace=False)
        random = np.random.default_rng([self.seed, task, seed])
        return [" ".join(random.choice(own, self.size.words)) for _ in range(count)]

    def pool(self, sites: Sequence[str] = ("q_proj", "v_proj"), rank: int | None = None, count: int = 0) -> Pool:
        """A pool of random adapters at these sites, one for each task; made once."""
        rank, count = rank or self.size.rank, count or self.size.distinct
        key = rank, tuple(sites), count
        if key not in self._pools:
            self._pools[key] = self._made(*key)
        return self._pools[key]

    def _made(self, rank: int, sites: Sequence[str], count: int) -> Pool:
        folder = self.folder / f"{'-'.join(sites)}-{rank}-{count}"
        described = describe_model(NAME, self.pristine, self.tokenizer)
        shapes = {name: shape for name, shape in described.sites.items() if name.rsplit(".", 1)[-1] in sites}
        dtype = torch.bfloat16 if self.on_card else torch.float32
        embed = Embedder(str(self.embedder_folder), device=str(self.device), dtype=dtype)
        pool = Pool.create(folder / "pool", described, describe_embedder(embed))
        for task in range(count):
            factors = random_factors(shapes, rank, 1000 * self.seed + task, self.device)
            write_peft(folder / f"t{task}", factors, NAME)
            pool.add(f"t{task}", folder / f"t{task}", self.texts(task, SAMPLES, 0), embed)
        return pool

    def trained(self, pool: Pool) -> None:
        """Random trained parts of `ramole` and `phatgoose` beside a pool; made once."""
        if trained_path(pool.path, "router").exists():
            return
        random = torch.Generator().manual_seed(self.seed)
        hashes = {entry.name: entry.hash for entry in pool.entries}
        shapes = {site: pool.base.sites[site] for site in pool.factors(pool.entries[0].hash)}
        gates = {
            f"{site}|{own}": _normal(random, into) for site, (into, _) in shapes.items() for own in hashes.values()
        }
        router = {f"{site}|down": _normal(random, 8, into) for site, (into, _) in shapes.items()}
        router |= {f"{site}|up": _normal(random, out, 8) for site, (_, out) in shapes.items()}
        for kind, tensors in (("phatgoose", gates), ("router", router)):
            Trained(kind, tensors, hashes, shapes, pool.version, "0" * 64, {}).save(pool.path)

    def router(self, method: str, pool: PoolView, model: Any = None, **options: Any) -> HiLoRA:
        """A router as a user makes one; it shares the embedder with all others, once one has loaded it."""
        options |= {"tokenizer": self.tokenizer, "embedder": self.__dict__.get("embedder"), "packed": True}
        return HiLoRA.from_pretrained(self.ours if model is None else model, pool, method, **options)

    def work(self, pool: PoolView, *, share: str = "zipf", **asked: int) -> Workload:
        """A batch; each prompt is of its adapter's task."""
        names = sorted(pool.names, key=_task)
        asked = {"batch": self.size.batch, "adapters": self.size.distinct, "new_tokens": self.size.new_tokens} | asked
        asked["adapters"] = min(asked["adapters"], asked["batch"])
        work = make_workload(names, share=share, words=1, seed=self.seed, **asked)
        prompts = [self.texts(_task(name), 1, 1 + i)[0] for i, name in enumerate(work.adapters)]
        return replace(work, prompts=prompts)


def some(pool: PoolView, names: Sequence[str]) -> PoolFolder:
    """A view of some of a pool's adapters."""
    manifest = store.parse_manifest(pool.path, store.read_manifest(pool.path))
    kept = [entry for entry in manifest["adapters"] if entry["name"] in set(names)]
    return PoolFolder(pool.path, json.dumps(manifest | {"adapters": kept}).encode())


def first(pool: PoolView, count: int) -> PoolFolder:
    """A view of a pool's first tasks."""
    return some(pool, sorted(pool.names, key=_task)[:count])


def _task(name: str) -> int:
    return int(name[1:])


def _normal(random: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random) / shape[-1] ** 0.5


def _vocabulary(special: Sequence[str], config: Any) -> dict[str, int]:
    words = [*special, *(f"w{i}" for i in range(config["vocab_size"] - len(special)))]
    return {word: i for i, word in enumerate(words)}
