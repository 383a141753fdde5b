"""The base model's linear modules: which adapters may change, and where they compute."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hilora.errors import ModelError


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) of each module that adapters may change: linear layers, GPT-2's Conv1D, and what stands for a linear
    layer in a quantised model, where that says how wide it is."""
    shapes = {}
    quantised = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nx), int(module.nf))
        elif quantised and (shape := _stands_for(module)):
            shapes[name] = shape
    return shapes


def _stands_for(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a module that stands for a linear layer, such as GPTQ's and AWQ's; None if it says nothing."""
    width, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (width, out) if type(width) is type(out) is int and not any(module.children()) else None


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is the numbers that it stands for, and no code of a quantised one.

    Codes may be integers, floats of one byte, or a kind of tensor that says of itself to be of another dtype.
    """
    return type(weight.data) is Tensor and weight.is_floating_point() and weight.dtype.itemsize > 1


def placements(model: nn.Module) -> dict[str, tuple[torch.device, torch.dtype]]:
    """Device and dtype in which each linear module computes; parts of a model may differ."""
    found = {}
    for name in linear_shapes(model):
        module = model.get_submodule(name)
        weight = next(chain(module.parameters(), module.buffers()))  # codes may be either
        hook = getattr(module, "_hf_hook", None)  # accelerate runs offloaded modules on this device
        where = getattr(hook, "execution_device", None)
        device = torch.device(where) if where is not None else weight.device
        plain = is_plain(weight) and isinstance(module, nn.Linear | Conv1D)
        dtype = weight.dtype if plain else getattr(model, "dtype", torch.float32)
        found[name] = (device, dtype)  # quantised weights compute in the model's dtype
    return found


def check_placed(model: nn.Module) -> None:
    """Refuse a model that does not know where prompts go: accelerate has put its first weights elsewhere.

    Raises:
        ModelError: says so.
    """
    if next(model.parameters()).is_meta:
        raise ModelError(
            "The model's embedding is offloaded (to the disk, or from a card to the CPU): prompts go nowhere. "
            "Give a device_map that leaves it on a device, and offloads later layers."
        )


def modules_of(model: nn.Module, sites: Iterable[str]) -> dict[str, nn.Module]:
    """All of a model's modules by name.

    Raises:
        ModelError: a site is not among them.
    """
    modules = dict(model.named_modules())
    if missing := [name for name in sites if name not in modules]:
        raise ModelError(f"The model has no module {missing[0]!r}; was the pool made for another base model?")
    return modules
