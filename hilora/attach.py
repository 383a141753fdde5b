"""Hooks that add a plan's deltas to the sites of a transformers model, and go away without a trace.

    with attach(model, sites, plan, gate):
        model.generate(...)

The base model's weights are never touched. A model carries one plan at a time: `attach` is not re-entrant.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hilora.compose.delta import Gate, Gated, Tokens, add_delta, join
from hilora.errors import ModelError
from hilora.types import Plan, Rocs, Site

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # guards against a second plan, holds no request


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) of each module that adapters may change: linear layers and GPT-2's Conv1D."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nx), int(module.nf))
    return shapes


def placements(model: nn.Module) -> dict[str, tuple[torch.device, torch.dtype]]:
    """Device and dtype in which each linear module computes; parts of a model may differ."""
    found = {}
    for name in linear_shapes(model):
        module = model.get_submodule(name)
        weight = next(module.parameters())
        hook = getattr(module, "_hf_hook", None)  # accelerate runs offloaded modules on this device
        where = getattr(hook, "execution_device", None)
        device = torch.device(where) if where is not None else weight.device
        dtype = weight.dtype if weight.is_floating_point() else getattr(model, "dtype", torch.float32)
        found[name] = (device, dtype)  # quantised weights compute in the model's dtype
    return found


@contextmanager
def attach(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate) -> Iterator[None]:
    """Add the plan's deltas to every site's output while the context is open.

    Inputs may be (batch, seq, in) or flattened row by row; a batch that is a multiple of the plan's rows
    (beams, several answers per prompt) follows the prompts in their order.

    Raises:
        ModelError: the model already carries a plan, or lacks a site.
    """
    if model in _attached:
        raise ModelError("This model already carries a plan; attach is not re-entrant. Leave the first one before.")
    modules = dict(model.named_modules())
    if missing := [name for name in sites if name not in modules]:
        raise ModelError(f"The model has no module {missing[0]!r}; was the pool made for another base model?")
    plans: dict[torch.device, Plan] = {}
    handles = []
    _attached.add(model)
    try:
        for names in _siblings(sites):
            where = sites[names[0]].up.device
            if where not in plans:
                plans[where] = _move(plan, where)
            shared = _Projection([sites[name] for name in names], plans[where], gate)
            for place, name in enumerate(names):
                hook = _hook(name, sites[name].up, shared, place)
                handles.append(modules[name].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _attached.discard(model)


def _siblings(sites: Mapping[str, Site]) -> list[list[str]]:
    """Sites that may read the same input (q, k and v do), in groups: one parent, one width, one device."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, site in sites.items():
        down = site.down
        groups.setdefault((name.rpartition(".")[0], down.shape[1], down.dtype, down.device), []).append(name)
    return list(groups.values())


class _Projection:
    """Gated projections of sibling sites, worked out together when the first of them reads an input.

    Siblings that turn out to read different inputs (cross-attention) are worked out apart from then on.
    """

    def __init__(self, parts: Sequence[Rocs], plan: Plan, gate: Gate) -> None:
        self.rows = len(plan.scale)
        joined = join(parts)  # copies the siblings' weights: once a batch is enough
        self.share = len(parts) > 1
        self.lengths = [len(rocs.owner) for rocs in parts]
        self.apart = [(rocs, gate(rocs, plan)) for rocs in parts]
        if not self.share:
            self.together = self.apart[0]
        elif gate.joinable:
            self.together = joined, gate(joined, plan)
        else:
            self.together = joined, _in_turn([gated for _, gated in self.apart], self.lengths)
        self.input: Tensor | None = None
        self.found: tuple[Tensor, ...] = ()
        self.left = 0  # siblings that have not read this input yet

    def __call__(self, name: str, x: Tensor, place: int) -> Tensor:
        """Gated z (roc, token) of the site at a place among its siblings."""
        if not self.share:
            return self._gated(name, x, *self.apart[place])
        if x is not self.input:
            if self.input is not None:  # a sibling read something else before this input was used by all
                self.share, self.input, self.found = False, None, ()
                return self._gated(name, x, *self.apart[place])
            self.input, self.left = x, len(self.lengths)
            self.found = self._gated(name, x, *self.together).split(self.lengths)
        z = self.found[place]
        self.left -= 1
        if not self.left:
            self.input, self.found = None, ()
        return z

    def _gated(self, name: str, x: Tensor, rocs: Rocs, gated: Gated) -> Tensor:
        flat = x.flatten(0, -2)  # (token, in)
        tokens = flat.shape[0]
        if tokens % self.rows:
            raise ModelError(
                f"Site {name!r} got {tokens} tokens for a plan of {self.rows} rows; expected a multiple. "
                f"Run the model with the batch that the plan was made for."
            )
        each = tokens // self.rows
        flat = flat.to(rocs.down.dtype)
        return gated(rocs.down @ flat.T, Tokens(each, flat))


def _in_turn(gates: Sequence[Gated], lengths: Sequence[int]) -> Gated:
    """Each site's own gate on its part of the joined projections."""

    def gated(z: Tensor, tokens: Tokens) -> Tensor:
        parts = zip(gates, z.split(list(lengths)), strict=True)
        return torch.cat([gate(part, tokens) for gate, part in parts])

    return gated


def _hook(name: str, up: Tensor, shared: _Projection, place: int) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        z = shared(name, inputs[0], place)
        return add_delta(output.flatten(0, -2), z, up).view(output.shape)

    return add


def _move(plan: Plan, where: torch.device) -> Plan:
    tensors = {f: getattr(plan, f).to(where) for f in ("ranks", "weights", "rocs", "scale")}
    return replace(plan, **tensors)
