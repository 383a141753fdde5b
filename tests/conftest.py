"""Tiny random models, adapters and pools: nothing is downloaded, everything is seeded here."""

from __future__ import annotations

import copy
import importlib.util
import json
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import decoders
from torch import Tensor

from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.pool.pool import Pool
from hilora.pool.trained import Trained
from hilora.route.experts import WEIGHTS, Calibration
from hilora.train.gates import MOES

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other

CHARS = "".join(chr(c) for c in range(32, 127)) + "\n"


class FakeEmbedder(Embedder):
    """Texts to unit vectors: a fixed random projection of their letter counts."""

    name, instruction, fingerprint, dim = "fake", "embed", "0000", 24

    def __init__(self) -> None:
        self.calls = 0
        generator = torch.Generator().manual_seed(7)
        self.projection = torch.randn(256, self.dim, generator=generator)

    def __call__(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        self.calls += 1
        counts = torch.zeros(len(texts), 256)
        for row, text in enumerate(texts):
            for byte in text.encode():
                counts[row, byte] += 1
        return torch.nn.functional.normalize(counts @ self.projection, dim=1)


def tiny_tokenizer() -> Any:
    """One token per printable character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(CHARS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model of a few thousand weights."""
    import transformers as tf

    vocab = len(CHARS) + 3
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    common = dict(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        **ends,
    )
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: tf.LlamaConfig(**common),
        "qwen2": lambda: tf.Qwen2Config(**common),
        "mistral": lambda: tf.MistralConfig(**common),
        "gemma": lambda: tf.GemmaConfig(**common),
        "gpt2": lambda: tf.GPT2Config(vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_positions=256, **ends),
        "t5": lambda: tf.T5Config(
            vocab_size=vocab, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **ends
        ),
    }
    torch.manual_seed(seed)
    config = configs[kind]()
    auto = tf.AutoModelForSeq2SeqLM if kind == "t5" else tf.AutoModelForCausalLM
    model = auto.from_config(config).to(dtype).eval()
    for parameter in model.parameters():  # larger weights than at the start of training, so that answers differ
        if parameter.ndim > 1:
            parameter.data.mul_(6 if kind != "t5" else 1)
    return model


def tiny_bert(folder: Path, pooling: str = "mean", longest: int = 32) -> Path:
    """A tiny random BERT in the layout of sentence-transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=64, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=longest + 8,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    for tensor in model.parameters():  # norms and biases too
        torch.nn.init.normal_(tensor, std=0.3)
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase, ".", ","]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    parts = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    (folder / "1_Pooling").mkdir()
    mode = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    return folder


TARGETS = {"gpt2": ["c_attn", "c_fc"], "t5": ["q", "v", "wi"]}


def target_sites(model: Any, kind: str) -> dict[str, tuple[int, int]]:
    """The modules that the tiny adapters change."""
    from hilora.base.modules import linear_shapes

    targets = TARGETS.get(kind, ["q_proj", "v_proj", "down_proj"])
    return {name: shape for name, shape in linear_shapes(model).items() if name.rsplit(".", 1)[-1] in targets}


def write_adapter(
    folder: Path,
    sites: dict[str, tuple[int, int]],
    *,
    rank: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 0.5,
    **config: Any,
) -> Path:
    """A PEFT folder with random weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site, (into, out) in sites.items():
        down = torch.randn(rank, into, generator=generator, dtype=torch.float64) * scale
        up = torch.randn(out, rank, generator=generator, dtype=torch.float64) * scale
        stored = dtype if dtype != torch.float64 else torch.float32
        tensors[f"base_model.model.{site}.lora_A.weight"] = down.to(stored)
        tensors[f"base_model.model.{site}.lora_B.weight"] = up.to(stored)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({site.rsplit(".", 1)[-1] for site in sites}),
        "base_model_name_or_path": "tiny",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


WORDS = {
    "alpha": "aaa abab baab abba",
    "beta": "xyz zzy yxyx zyx",
    "gamma": "mno onm mmnn noom",
    "delta": "123 3211 2231 1132",
}
"""Four "tasks" that use different letters, so that the fake embedder tells them apart."""


def task_texts(task: str, count: int, seed: int = 0) -> list[str]:
    """Random texts of a task."""
    rng = np.random.default_rng([seed, *task.encode()])
    words = WORDS[task].split()
    return [" ".join(rng.choice(words, size=rng.integers(3, 8))) for _ in range(count)]


RANKS = {"alpha": 4, "beta": 4, "gamma": 2, "delta": 6}


def make_pool(path: Path, kind: str, model: Any, embedder: FakeEmbedder, tasks: Sequence[str] = tuple(WORDS)) -> Pool:
    """A pool of random adapters of different ranks, one per task."""
    pool = Pool.create(path, describe_model("tiny", model, tiny_tokenizer()), describe_embedder(embedder))
    sites = target_sites(model, kind)
    for task in tasks:
        folder = write_adapter(path.parent / f"{path.name}-{task}", sites, rank=RANKS[task], seed=ord(task[0]))
        pool.add(task, folder, task_texts(task, 20), embedder)
    with pytest.MonkeyPatch.context() as patch:
        default_weights(patch)
        pool.tune()
    make_trained(pool, sites)
    return pool


def make_trained(pool: Pool, sites: dict[str, tuple[int, int]]) -> None:
    """Random trained parts for every method that has some: experts are the first and the third adapter."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def save(kind: str, tensors: dict[str, Tensor], names: Sequence[str], **recipe: Any) -> None:
        hashes = {name: pool.entries[pool.index(name)].hash for name in names}
        Trained(kind, tensors, hashes, sites, pool.version, "0" * 64, recipe).save(pool.path)

    names = sorted(pool.names)
    experts = names[::2]
    low = {f"{site}|down": random(3, into) for site, (into, _) in sites.items()}
    for name in ("router", "router-all", "router-rate"):
        save(name, low | {f"{site}|up": random(out, 3) for site, (_, out) in sites.items()}, names[:2])
    hashes = [entry.hash for entry in pool.entries]
    save("phatgoose", {f"{site}|{own}": random(into) for site, (into, _) in sites.items() for own in hashes}, names)
    for kind in MOES:
        dense = {site: random(len(experts), into) for site, (into, _) in sites.items()}
        save(kind, dense, experts, experts=experts)
    save("lorahub", {"weights": torch.linspace(-0.4, 0.9, len(names))}, names, drawn=names)


def default_weights(patch: pytest.MonkeyPatch) -> None:
    """Pools are tuned to the default weights of the witnesses and to one of two ridges; more takes seconds."""
    patch.setattr("hilora.route.ridge.GRID", (1e-4, 1e-3))
    for place in ("hilora.pool.pool", "hilora.route.apart", "hilora.route.epoch"):
        patch.setattr(f"{place}.calibrate", lambda samples, terms=True: Calibration(dict(WEIGHTS)))


@pytest.fixture
def quick_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    default_weights(monkeypatch)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def joined(tokenizer: Any) -> Any:
    """A tokenizer of the test's own whose tokens join without spaces: what is said grows piece by piece."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.decoder = decoders.Fuse()
    return own


@pytest.fixture(scope="session")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Pool]]:
    """(model, pool) of a kind, made once; tests must not change them."""
    made: dict[str, tuple[Any, Pool]] = {}

    def get(kind: str) -> tuple[Any, Pool]:
        if kind not in made:
            model = tiny_model(kind)
            made[kind] = model, make_pool(tmp_path_factory.mktemp(kind) / "pool", kind, model, FakeEmbedder())
        return made[kind]

    return get


class Tiny:
    """The makers above, for tests that need their own."""

    model = staticmethod(tiny_model)
    pool = staticmethod(make_pool)
    adapter = staticmethod(write_adapter)
    sites = staticmethod(target_sites)
    texts = staticmethod(task_texts)
    tokenizer = staticmethod(tiny_tokenizer)
    bert = staticmethod(tiny_bert)
    embedder = FakeEmbedder
    tasks = tuple(WORDS)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


class Scripts:
    """The scripts outside the package, loaded and run as from a command line."""

    root = Path(__file__).parent.parent

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def load(self, path: str) -> Any:
        spec = importlib.util.spec_from_file_location(Path(path).stem, self.root / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(self, module: Any, *args: Any) -> None:
        self.monkeypatch.setattr(sys, "argv", ["script", *map(str, args)])
        module.main()


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    return Scripts(monkeypatch)
