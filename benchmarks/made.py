"""What the benchmarks are made of: pools of random adapters for real or random base models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hilora import Pool
from hilora.fingerprint import describe_base
from hilora.pool.view import EmbedderInfo

TOKENIZER = "smollm2-135m"
"""The tokenizer of random base models."""
LAYER = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49152,
}
"""Width of Llama-2-7B's layers."""


def wide_base(folder: Path, layers: int) -> str:
    """A random model of a few layers as wide as Llama-2-7B's, written to a folder; returns its path."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from hilora.models import resolve_base

    torch.manual_seed(0)
    source = AutoTokenizer.from_pretrained(resolve_base(TOKENIZER))
    ends = {
        "bos_token_id": source.bos_token_id,
        "eos_token_id": source.eos_token_id,
        "pad_token_id": source.eos_token_id,
    }
    config = LlamaConfig(**LAYER, **ends, num_hidden_layers=layers, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    source.save_pretrained(folder)
    return str(folder)


def write_random_adapter(folder: Path, sites: dict[str, tuple[int, int]], rank: int, base: str, seed: int) -> None:
    """A PEFT folder with random factors.

    Args:
        folder: to be made.
        sites: module -> (in, out).
        rank, base: of the adapter.
        seed: of its factors.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site, (width, out) in sites.items():
        down = torch.randn(rank, width, generator=generator) / width**0.5
        up = torch.randn(out, rank, generator=generator) * 0.02
        for side, tensor in (("A", down), ("B", up)):
            tensors[f"base_model.model.{site}.lora_{side}.weight"] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({site.rsplit(".", 1)[-1] for site in sites})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "base_model_name_or_path": base,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def random_pool(
    folder: Path, base: str, count: int, rank: int, modules: Sequence[str], embedder: EmbedderInfo
) -> Pool:
    """A pool of random adapters of one rank at modules of these names; samples are random embeddings."""
    described = describe_base(base)
    sites = {site: shape for site, shape in described.sites.items() if site.rsplit(".", 1)[-1] in modules}
    pool = Pool.create(folder / "pool", described, embedder)
    for i in range(count):
        write_random_adapter(folder / f"a{i}", sites, rank, base, i)
        drawn = torch.randn(20, embedder.dim, generator=torch.Generator().manual_seed(i))
        given = torch.nn.functional.normalize(drawn + 3 * drawn[:1], dim=1)
        texts = [f"Sample {n} of task {i}." for n in range(len(given))]
        pool.add(f"a{i}", folder / f"a{i}", texts, lambda _, given=given: given, any_base=True)
    return pool
