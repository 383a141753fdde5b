"""Hooks that add a plan's deltas to the sites of a transformers model, and go away without a trace.

    with attach(model, sites, plan, gate):
        model.generate(...)

The base model's weights are never touched. A model carries one plan at a time: `attach` is not re-entrant.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hilora.compose.delta import Gate
from hilora.compose.forms import Add, Forms
from hilora.errors import ModelError
from hilora.types import Plan, Site

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


class Attachment:
    """The deltas of a plan at the sites of a model, worked out once; as often as it is opened they are added.

    Inputs may be (batch, seq, in) or flattened row by row; a batch that is a multiple of the plan's rows
    (beams, several answers per prompt) follows the prompts in their order.

    Raises:
        ModelError: the model lacks a site; when opened: it already carries a plan.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate) -> None:
        self.model, self.modules = model, dict(model.named_modules())
        if missing := [name for name in sites if name not in self.modules]:
            raise ModelError(f"The model has no module {missing[0]!r}; was the pool made for another base model?")
        plans: dict[torch.device, Plan] = {}
        self.groups = []
        for names in _groups(sites):
            where = sites[names[0]].up.device
            if where not in plans:
                plans[where] = _move(plan, where)
            self.groups.append((names, _Siblings([sites[name] for name in names], plans[where], gate)))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Add the deltas to every site's output while the context is open."""
        if self.model in _attached:
            raise ModelError(
                "This model already carries a plan; attach is not re-entrant. Leave the first one before."
            )
        handles = []
        _attached.add(self.model)
        try:
            for names, siblings in self.groups:
                siblings.forget()
                for place, name in enumerate(names):
                    handles.append(self.modules[name].register_forward_hook(_hook(siblings, place)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            _attached.discard(self.model)


def attach(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate) -> AbstractContextManager[None]:
    """Add the plan's deltas to every site's output while the context is open: an `Attachment` for once.

    Raises:
        ModelError: the model already carries a plan, or lacks a site.
    """
    return Attachment(model, sites, plan, gate)()


def _groups(sites: Mapping[str, Site]) -> list[list[str]]:
    """Sites that may read the same input (q, k and v do), in groups: one parent, one width, one device."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, site in sites.items():
        down = site.down
        groups.setdefault((name.rpartition(".")[0], down.shape[1], down.dtype, down.device), []).append(name)
    return list(groups.values())


class _Siblings:
    """Sites that read the same input: what to add at each is worked out when the first of them reads it.

    Siblings that turn out to read different inputs (cross-attention) are worked out apart from then on.
    """

    def __init__(self, sites: Sequence[Site], plan: Plan, gate: Gate) -> None:
        self.sites, self.rows = sites, len(plan.scale)
        self.forms = Forms(sites, plan, gate)
        self.apart: list[_Siblings] = []
        self.input: Tensor | None = None
        self.found: list[Add] = []
        self.left = 0  # siblings that have not read this input yet

    def __call__(self, x: Tensor, place: int) -> Add:
        """What adds the delta of the site at a place among its siblings."""
        if self.apart:
            return self.apart[place](x, 0)
        if x is not self.input:
            if self.input is not None:  # a sibling read something else before this input was used by all
                self.apart = [_Siblings([site], self.forms.plan, self.forms.gate) for site in self.sites]
                self.forget()
                return self.apart[place](x, 0)
            self.input, self.left, self.found = x, len(self.sites), self._add(x)
        add = self.found[place]
        self.left -= 1
        if not self.left:
            self.forget()
        return add

    def forget(self) -> None:
        """Drop what was worked out: all siblings have read it, or a forward pass broke off."""
        self.input, self.found = None, []

    def _add(self, x: Tensor) -> list[Add]:
        tokens = x.numel() // x.shape[-1]
        if tokens % self.rows:
            raise ModelError(
                f"Site {self.sites[0].name!r} got {tokens} tokens for a plan of {self.rows} rows; expected a "
                f"multiple. Run the model with the batch that the plan was made for."
            )
        return self.forms(x)


def _hook(siblings: _Siblings, place: int) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return siblings(inputs[0], place)(output)

    return add


def _move(plan: Plan, where: torch.device) -> Plan:
    tensors = {f: getattr(plan, f).to(where) for f in ("ranks", "weights", "rocs", "scale")}
    return replace(plan, **tensors)
