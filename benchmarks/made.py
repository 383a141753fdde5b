"""What the benchmarks are made of: pools of random adapters for real or random base models, and a decoding step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hilora import Pool
from hilora.base.embed import EmbedderInfo
from hilora.base.fingerprint import describe_base
from hilora.base.padding import pad_batch
from hilora.base.prompts import encode_prompts, pad_id
from hilora.engine.cache import CACHE
from hilora.pool.export import write_peft
from hilora.types import Factors

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

    from hilora.base.models import resolve_base

    torch.manual_seed(0)
    source = AutoTokenizer.from_pretrained(resolve_base(TOKENIZER), trust_remote_code=False)
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


def random_factors(
    sites: dict[str, tuple[int, int]], rank: int, seed: int, device: torch.device | str = "cpu"
) -> Factors:
    """Factors for modules of these (in, out), drawn by a seed on a device, and on the CPU then."""
    generator = torch.Generator(device).manual_seed(seed)
    found = {}
    for site, (width, out) in sites.items():
        down = torch.randn(rank, width, generator=generator, device=device) / width**0.5
        up = torch.randn(out, rank, generator=generator, device=device) * 0.04
        found[site] = (down.to(torch.bfloat16).cpu(), up.to(torch.bfloat16).cpu())
    return found


def random_pool(
    folder: Path, base: str, count: int, rank: int, modules: Sequence[str], embedder: EmbedderInfo
) -> Pool:
    """A pool of random adapters of one rank at modules of these names; samples are random embeddings."""
    described = describe_base(base)
    sites = {site: shape for site, shape in described.sites.items() if site.rsplit(".", 1)[-1] in modules}
    pool = Pool.create(folder / "pool", described, embedder)
    for i in range(count):
        write_peft(folder / f"a{i}", random_factors(sites, rank, i), base)
        drawn = torch.randn(20, embedder.dim, generator=torch.Generator().manual_seed(i))
        given = torch.nn.functional.normalize(drawn + 3 * drawn[:1], dim=1)
        texts = [f"Sample {n} of task {i}." for n in range(len(given))]
        pool.add(f"a{i}", folder / f"a{i}", texts, lambda _, given=given: given, any_base=True)
    return pool


@torch.inference_mode()
def decoding_step(
    model: Any, tokenizer: Any, prompts: Sequence[str]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Prompts, read: a call that makes one token more of each, and one that takes it back; in inference mode."""
    ids, mask = pad_batch(encode_prompts(list(prompts), tokenizer), pad_id(tokenizer), left=True)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    seen = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    out = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1)
    new, cache, last = out.logits[:, -1:].argmax(-1), getattr(out, CACHE), seen.sum(1, keepdim=True) - 1
    step = partial(model, input_ids=new, attention_mask=seen, position_ids=last, **{CACHE: cache})
    return step, partial(cache.crop, -1)
