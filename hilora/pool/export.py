"""An adapter of a pool as a PEFT folder again, for whoever else reads those."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hilora.errors import InputError
from hilora.pool.peft_config import CONFIG
from hilora.pool.view import PoolView
from hilora.types import Factors

WEIGHTS = "adapter_model.safetensors"


def export_adapter(pool: PoolView, name: str, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Write one adapter as `PeftModel.from_pretrained` reads it.

    The scaling that the uploaded folder had is part of the weights by now, so alpha equals the rank.

    Args:
        pool: where the adapter is.
        name: of the adapter.
        folder: is made; may not hold an adapter.
        dtype: of the weights; default: as kept.

    Raises:
        UnknownNameError: there is no such adapter.
        InputError: the folder holds an adapter already.
    """
    entry = pool.entries[pool.index(name)]
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds an adapter already. Choose another folder.")
    factors = {
        site: (down.to(dtype or down.dtype), up.to(dtype or up.dtype))
        for site, (down, up) in pool.factors(entry.hash).items()
    }
    write_peft(folder, factors, entry.base_model)
    return folder


def write_peft(folder: Path, factors: Factors, base_model: str) -> None:
    """Write factors as a PEFT folder; the folder is made."""
    tensors: dict[str, Tensor] = {}
    for site, (down, up) in factors.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{site}.lora_B.weight"] = up.contiguous()
    ranks = {site: down.shape[0] for site, (down, _) in factors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(peft_config(ranks, base_model), indent=1) + "\n", encoding="utf-8")


def peft_config(ranks: Mapping[str, int], base_model: str) -> dict[str, object]:
    """PEFT's configuration of a LoRA of the given rank at each site, without scaling."""
    rank = max(ranks.values())
    others = {site: r for site, r in sorted(ranks.items()) if r != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),  # whole names: a module's last name may occur elsewhere
        "bias": "none",
        "task_type": None,
        "inference_mode": True,
    }
