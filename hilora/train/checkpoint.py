"""Where a run goes on after an interruption: weights and optimiser moments, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError
from hilora.train.recipe import Schedule

if TYPE_CHECKING:
    import torch


def save_checkpoint(
    work: Path, recipe: Schedule, step: int, named: Mapping[str, torch.nn.Parameter], optimiser: Any, key: str = ""
) -> None:
    """Weights and optimiser moments as safetensors: `kill -9` leaves the old or the new checkpoint."""
    from safetensors.torch import save_file

    tensors = {name: p.detach() for name, p in named.items()}
    for name, p in named.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}:{name}"] = optimiser.state[p][moment]
    partial = work / "checkpoint.partial"
    save_file(tensors, partial, metadata={"step": str(step), "recipe": json.dumps(asdict(recipe)), "key": key})
    partial.rename(work / "checkpoint.safetensors")


def load_checkpoint(
    work: Path, recipe: Schedule, named: Mapping[str, torch.nn.Parameter], optimiser: Any, key: str = ""
) -> int:
    """Steps already done, with weights and moments restored in place; 0 without a checkpoint."""
    import torch
    from safetensors import safe_open

    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["recipe"]) != json.loads(json.dumps(asdict(recipe))):
            raise InputError(f"{work} holds a run with another recipe. Give the same options, or delete the folder.")
        if metadata.get("key", "") != key:
            raise InputError(f"{work} holds a run on other data or adapters. Restore those, or delete the folder.")
        step = int(metadata["step"])
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(file.get_tensor(name))
                optimiser.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"exp_avg:{name}").to(p.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq:{name}").to(p.device),
                }
    return step
