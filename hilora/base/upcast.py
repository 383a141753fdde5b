"""A half-precision model run in fp32 without a copy of it: a layer's weights are fp32 while the layer runs.

What a model's code does to its input (masks, states, layers that differ from each other) is then seen without the
rounding. All layers run, with their own weights: nothing is known here of what kinds of layers there are. What is
outside the layers is cast once, and so are the layers that fit into `ROOM`; the others anew in each pass, so that one
of them at a time takes memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hilora.base.modules import is_plain

HALF = (torch.bfloat16, torch.float16)
ROOM = 2**30
"""Bytes of fp32 layers that may be there all the time: the default base fits."""


def is_half(model: nn.Module) -> bool:
    """Whether any of a model's weights is bf16 or fp16."""
    return any(parameter.dtype in HALF for parameter in model.parameters())


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Run a model in fp32 while the context is open. No weight is changed: an fp32 one stands in for it.

    Args:
        model: called by nobody else meanwhile.

    Raises:
        NotImplementedError: its weights are quantised, or elsewhere.
    """
    weights = list(model.parameters())
    coded = not all(map(is_plain, weights))
    if coded or getattr(model, "hf_quantizer", None) is not None:  # some keep what is coded in buffers
        raise NotImplementedError("its weights are quantised")
    if any(each.is_meta for each in weights):
        raise NotImplementedError("its weights are offloaded")
    layers, room = _layers(model), ROOM
    within = {part for parts in layers.values() for part in parts}
    with ExitStack() as stack:
        outside = _Weights([module for module in model.modules() if module not in within])
        stack.callback(outside.put_back)
        outside.cast()
        for layer, parts in layers.items():
            own = _Weights(parts)
            stack.callback(own.put_back)
            if own.bytes <= room:
                room -= own.bytes
                own.cast()
            else:
                stack.callback(layer.register_forward_pre_hook(own.cast, prepend=True).remove)
                stack.callback(layer.register_forward_hook(own.put_back, always_call=True).remove)
        yield


class _Weights:
    """The half-precision weights and buffers of modules, which are cast, and put back, together.

    Args:
        parts: the modules.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.halves: list[tuple[nn.Module, str, Tensor]] = []
        for part in parts:
            own = [*part.named_parameters("", False, False), *part.named_buffers("", False, False)]
            self.halves += [(part, name, value) for name, value in own if value.dtype in HALF]
        self.bytes = 4 * sum(value.numel() for _, _, value in self.halves)

    def cast(self, *_: Any) -> None:
        """Let fp32 ones stand in; one that is there twice, under several names, does so once."""
        made: dict[int, Tensor] = {}
        for part, name, value in self.halves:
            if id(value) not in made:
                new = value.detach().float()
                made[id(value)] = nn.Parameter(new, False) if isinstance(value, nn.Parameter) else new
            setattr(part, name, made[id(value)])

    def put_back(self, *_: Any) -> None:
        """As they were."""
        for half in self.halves:
            setattr(*half)


def _layers(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """Each layer of a model, with the modules in it that are in none before."""
    found: dict[nn.Module, list[nn.Module]] = {}
    within: set[nn.Module] = set()
    for stack in model.modules():  # outer ones come first
        if isinstance(stack, nn.ModuleList) and stack not in within:
            for layer in stack:
                if layer not in within and not isinstance(layer, nn.ModuleList):
                    found[layer] = [each for each in layer.modules() if each not in within]
                    within.update(found[layer])
    return found
