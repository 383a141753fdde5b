"""Hooks that add a plan's deltas to the sites of a transformers model, and go away without a trace.

    with attach(model, sites, plan, gate):
        model.generate(...)

No value of the base model ever changes. A model carries one plan at a time: `attach` is not re-entrant. This is the
equation as it stands; `HiLoRA` serves with the faster forms of `attachment` unless it is told form="plain".
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hilora.base.rows import plan_at, rows_first, sites_of
from hilora.compose.delta import Gate, plain
from hilora.errors import ModelError
from hilora.types import Plan, Site

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # guards against a second plan, holds no request


@contextmanager
def attach(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate) -> Iterator[None]:
    """Add the plan's deltas to every site's output while the context is open.

    Inputs may be (batch, seq, in) or flattened row by row; a batch that is a multiple of the plan's rows
    (beams, several answers per prompt) follows the prompts in their order; any other is a ModelError.
    """
    read = sites_of(model, sites)
    with carrying(model), ExitStack() as stack:
        for name, (module, order) in read.items():
            hook = _hook(sites[name], plan_at(name, plan_on(plan, sites[name].up.device), order), gate)
            stack.callback(module.register_forward_hook(rows_first(hook, order)).remove)
        yield


def _hook(site: Site, plan: Plan, gate: Gate) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).to(site.down)  # accelerate sends it there, too
        row = torch.arange(len(plan.scale), device=x.device).repeat_interleave(tokens_per_row(len(x), plan, site))
        return output + plain(x, row, plan, gate, site).to(output.dtype).view(output.shape)

    return add


def tokens_per_row(tokens: int, plan: Plan, site: Site) -> int:
    """How many of the tokens that a site reads belong to each row; a ModelError if they are of another batch."""
    if tokens % len(plan.scale):
        raise ModelError(
            f"Site {site.name!r} got {tokens} tokens for a plan of {len(plan.scale)} rows; expected a "
            f"multiple. Run the model with the batch that the plan was made for."
        )
    return tokens // len(plan.scale)


@contextmanager
def carrying(model: nn.Module) -> Iterator[None]:
    """The model carries a plan while the context is open, and no second one."""
    if model in _attached:
        raise ModelError("This model already carries a plan; attach is not re-entrant. Leave the first one before.")
    _attached.add(model)
    try:
        yield
    finally:
        _attached.discard(model)


def plan_on(plan: Plan, where: torch.device) -> Plan:
    """The plan's tensors on a device."""
    return replace(plan, **{f: getattr(plan, f).to(where) for f in ("ranks", "weights", "rocs", "scale")})
