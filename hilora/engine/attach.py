"""Hooks that add a plan's deltas to the sites of a transformers model, and go away without a trace.

    with attach(model, sites, plan, gate):
        model.generate(...)

No value of the base model ever changes. A model carries one plan at a time: `attach` is not re-entrant.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from hilora.compose.delta import Gate
from hilora.engine.packed import Packed
from hilora.engine.siblings import Beside, Together
from hilora.errors import ModelError
from hilora.types import Plan, Site

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # guards against a second plan, holds no request


class Attachment:
    """The deltas of a plan at the sites of a model, worked out once; as often as it is opened they are added.

    Inputs may be (batch, seq, in) or flattened row by row; a batch that is a multiple of the plan's rows
    (beams, several answers per prompt) follows the prompts in their order.

    Args:
        model: that the sites are of.
        sites: by name, the batch's adapters stacked.
        plan: of the batch.
        gate: the composer.
        packs: blocks of the model's weights that hold sites; their modules are worked out by one product.

    Raises:
        ModelError: the model lacks a site; when opened: it already carries a plan.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        plan: Plan,
        gate: Gate,
        packs: Sequence[Packed] = (),
    ) -> None:
        self.model, modules = model, dict(model.named_modules())
        if missing := [name for name in sites if name not in modules]:
            raise ModelError(f"The model has no module {missing[0]!r}; was the pool made for another base model?")
        plans: dict[torch.device, Plan] = {}

        def bound(names: Sequence[str]) -> tuple[list[Site], Plan, Gate]:
            where = sites[names[0]].up.device
            if where not in plans:
                plans[where] = _move(plan, where)
            return [sites[name] for name in names], plans[where], gate

        self.groups: list[Beside | Together] = [
            Together(pack, *bound([name for name in pack.names if name in sites])) for pack in packs
        ]
        packed = {name for pack in packs for name in pack.names}
        for names in _groups({name: site for name, site in sites.items() if name not in packed}):
            self.groups.append(Beside([modules[name] for name in names], *bound(names)))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Add the deltas to every site's output while the context is open."""
        if self.model in _attached:
            raise ModelError(
                "This model already carries a plan; attach is not re-entrant. Leave the first one before."
            )
        with ExitStack() as stack:
            _attached.add(self.model)
            stack.callback(_attached.discard, self.model)
            for group in self.groups:
                stack.enter_context(group())
            yield


def attach(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate) -> AbstractContextManager[None]:
    """Add the plan's deltas to every site's output while the context is open: an `Attachment` for once.

    Raises:
        ModelError: the model already carries a plan, or lacks a site.
    """
    return Attachment(model, sites, plan, gate)()


def _groups(sites: Mapping[str, Site]) -> list[list[str]]:
    """Sites that may read the same input, in groups: one parent, one width, one device."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, site in sites.items():
        down = site.down
        groups.setdefault((name.rpartition(".")[0], down.shape[1], down.dtype, down.device), []).append(name)
    return list(groups.values())


def _move(plan: Plan, where: torch.device) -> Plan:
    tensors = {f: getattr(plan, f).to(where) for f in ("ranks", "weights", "rocs", "scale")}
    return replace(plan, **tensors)
