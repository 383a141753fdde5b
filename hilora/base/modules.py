"""The base model's linear modules: which adapters may change, and where they compute."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hilora.errors import ModelError


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) of each module that adapters may change: linear layers and GPT-2's Conv1D."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nx), int(module.nf))
    return shapes


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
        weight = next(module.parameters())
        hook = getattr(module, "_hf_hook", None)  # accelerate runs offloaded modules on this device
        where = getattr(hook, "execution_device", None)
        device = torch.device(where) if where is not None else weight.device
        dtype = weight.dtype if is_plain(weight) else getattr(model, "dtype", torch.float32)
        found[name] = (device, dtype)  # quantised weights compute in the model's dtype
    return found


def modules_of(model: nn.Module, sites: Iterable[str]) -> dict[str, nn.Module]:
    """All of a model's modules by name.

    Raises:
        ModelError: a site is not among them.
    """
    modules = dict(model.named_modules())
    if missing := [name for name in sites if name not in modules]:
        raise ModelError(f"The model has no module {missing[0]!r}; was the pool made for another base model?")
    return modules
