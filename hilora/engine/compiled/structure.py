"""The model as it is compiled: the same weights in other modules, which hold the adapters' sites from the start.

Hooks that come after a step was captured would be left out without a word, and forwards that are set would have it
captured again. So nothing is ever set here: a copy of the modules, which shares all weights, has `Part`s where
adapters may change it, and what changes are the values of buffers. Modules that read one input are worked out when
the first of them is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hilora.compose.delta import Gate, Gated
from hilora.compose.lie import lie_of
from hilora.compose.rocs import TopRocs
from hilora.engine.even import Even
from hilora.engine.fused import FusedTopRocs, lies_of
from hilora.engine.packed import Packed
from hilora.engine.stacked import Stacked
from hilora.types import Plan, Rocs


class Using:
    """What the rows of a step use of adapters in their slots: buffers that all groups read.

    Args:
        gate: the composer.
        rows, slots: of them.
        where: they are.
        operation: that chooses ROCs (`fused.FusedTopRocs`).
    """

    def __init__(self, gate: Gate, rows: int, slots: int, where: torch.device, operation: Any) -> None:
        self.gate: Gate = gate
        if isinstance(gate, TopRocs):
            self.gate = FusedTopRocs(gate.criterion, gate.weighted, operation)
        self.rows = rows
        with torch.inference_mode(False):
            self.plan = Plan(
                (),
                torch.ones(slots, dtype=torch.int32, device=where),
                torch.zeros(rows, slots, device=where),
                torch.zeros(rows, slots, dtype=torch.int32, device=where),
                torch.ones(rows, device=where),
                at=torch.zeros(slots, dtype=torch.long, device=where),
            )
            self.factor = torch.zeros(rows, slots, device=where)

    @property
    def shares(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `FusedTopRocs` reads of the plan."""
        return self.plan.rocs, self.plan.ranks, self.factor

    def write(self, plan: Plan) -> None:
        """Another plan, over the same slots."""
        mine = self.plan
        assert mine.at is not None
        for name in ("ranks", "weights", "rocs", "scale"):
            getattr(mine, name).copy_(getattr(plan, name))
        mine.at.copy_(torch.tensor(plan.ids))
        if isinstance(self.gate, FusedTopRocs):
            self.factor.copy_(self.gate.shares_of(mine)[2])


class Group(nn.Module):
    """Modules that read one input, and the ROCs of those that adapters change.

    Args:
        stacked: the ROCs.
        modules: that have the sites, where they are no block.
        pack: the block of weights, if there is one.
        using: what rows use.
    """

    weight: Tensor | None
    bias: Tensor | None
    down: Tensor
    whole: Tensor | None

    def __init__(self, stacked: Stacked, modules: Sequence[nn.Module], pack: Packed | None, using: Using) -> None:
        super().__init__()
        self.names = pack.names if pack else tuple(site.name for site in stacked.sites)
        self.sites = [site.name for site in stacked.sites]
        self.lengths, self.outs, count = stacked.lengths, stacked.widths, len(stacked.rocs.owner)
        self.using, gate = using, using.gate
        self.own = [_alike(module) for module in modules]  # none in a block
        self.parts: Sequence[Rocs] = [stacked.rocs] if gate.joinable else stacked.sites
        for part in self.parts:
            lie_of(part)  # before anything is captured
        self.lies = lies_of(stacked.rocs)
        self.lodged = pack is not None and count <= pack.spare
        self.widths = pack.widths if pack else []
        rows = sum(self.widths) + (count if self.lodged else 0)
        self._keep("weight", pack.weight[:rows] if pack else None)
        self._keep("bias", pack.bias[:rows] if pack and pack.bias is not None else None)
        self._keep("down", None if self.lodged else stacked.rocs.down)
        self._keep("whole", stacked.whole)
        for place, site in enumerate(stacked.sites):
            self._keep(f"up{place}", site.up.t())
        self.found, self.left = list[Tensor](), len(self.names)

    def forward(self, x: Tensor, name: str) -> Tensor:
        """The output (..., out) of one of its modules for its input (..., in), delta added; a token in each row.

        The first that asks has all worked out, the last takes what is left away.
        """
        if not self.found:
            self.found = self.outputs(x.reshape(-1, x.shape[-1]))
        out = self.found[self.names.index(name)]
        self.left -= 1
        if not self.left:
            self.found, self.left = [], len(self.names)
        return out.reshape(*x.shape[:-1], -1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """(row, out) of each module, given what all of them read."""
        if self.weight is None:
            made, found = x, [module(x).reshape(len(x), -1) for module in self.own]
        else:
            made = nn.functional.linear(x, self.weight, self.bias)
            found = list(made[:, : sum(self.widths)].split(self.widths, 1))
        z = made[:, sum(self.widths) :] if self.lodged else x.to(self.down.dtype) @ self.down.t()
        for name, delta in zip(self.sites, self.deltas(z, x), strict=True):
            place = self.names.index(name)
            found[place] = found[place] + delta.to(made.dtype)
        return found

    def deltas(self, z: Tensor, x: Tensor) -> list[Tensor]:
        """What each site adds (row, out), given z (row, roc)."""
        tokens = Even(1, x.to(z.dtype))
        gate, plan = self.using.gate, self.using.plan
        if gate.joinable:
            gated = self._gated()(z.t(), tokens).t()
            if self.whole is not None:
                both: Tensor = gated @ self.whole
                return list(both.split(self.outs, 1))
            each = list(gated.split(self.lengths, 1))
        else:
            parts = zip(self.parts, z.split(self.lengths, 1), strict=True)
            each = [gate(part, plan)(own.t(), tokens).t() for part, own in parts]
        return [own @ self.get_buffer(f"up{place}") for place, own in enumerate(each)]

    def _gated(self) -> Gated:
        """The gate, bound to the plan as it is now."""
        gate = self.using.gate
        if isinstance(gate, FusedTopRocs):
            return gate.bound(self.parts[0], self.lies, self.using.shares)
        return gate(self.parts[0], self.using.plan)

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)


class Part(nn.Module):
    """A module that adapters may change, or that is worked out together with such.

    Args:
        group: that it is of.
        name: of the module.
    """

    def __init__(self, group: Group, name: str) -> None:
        super().__init__()
        self.group, self.name = group, name

    def forward(self, x: Tensor) -> Tensor:
        """Its output for its input."""
        found: Tensor = self.group(x, self.name)
        return found


def structure(model: nn.Module, groups: Sequence[Group]) -> Any:
    """A model with the same weights, and with groups where they belong."""
    shared = _weights(model)
    parts = {name: Part(group, name) for group in groups for name in group.names}
    for name, part in parts.items():
        shared[id(model.get_submodule(name))] = part  # what is replaced is not copied
    return deepcopy(model, shared)


def _alike(module: nn.Module) -> nn.Module:
    """A module with the same weights; what is hooked to one is not to the other."""
    return deepcopy(module, _weights(module))


def _weights(module: nn.Module) -> dict[int, Any]:
    return {id(each): each for each in [*module.parameters(), *module.buffers()]}
