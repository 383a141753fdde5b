"""A plan and its gate, bound to ROCs: layers whose ROCs lie alike share what depends on that alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch

from hilora.compose.delta import Gate, Gated
from hilora.engine.fused import FusedTopRocs
from hilora.engine.own import Own, own_rocs
from hilora.engine.ranked import faster
from hilora.engine.stacked import Stacked
from hilora.types import Plan, Rocs

T = TypeVar("T")


class Bound:
    """A plan and a gate for the sites of a model.

    Args:
        plan: of the batch, on the sites' device.
        gate: the composer.
    """

    def __init__(self, plan: Plan, gate: Gate) -> None:
        self.plan, self.gate = plan, faster(gate, plan.scale.device)
        self._made: dict[Any, Any] = {}

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What is under a key, made when it is first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def own(self, stacked: Stacked) -> Own | None:
        """Each row's own ROCs; None if picking them spares nothing, or is not for this gate."""
        if not self.gate.joinable or isinstance(self.gate, FusedTopRocs):
            return None
        own = self.once(("own", stacked.layout), lambda: own_rocs(stacked.layout, self.plan))
        if own is None:
            return None
        return replace(own, rocs=replace(own.rocs, size=stacked.rocs.size[own.index]))

    def gated(self, stacked: Stacked, dtype: torch.dtype) -> Gated:
        """A joinable gate for z (roc, token) of all ROCs; it works in a dtype."""
        rocs = stacked.rocs
        owner, blocks = self.once(("lie", stacked.layout), lambda: (rocs.owner, rocs.blocks))
        return self.gate(_working_in(Rocs(rocs.down, rocs.size, owner, blocks), dtype), self.plan)

    def gated_own(self, own: Own, dtype: torch.dtype) -> Gated:
        """A joinable gate for z of each row's own ROCs."""
        return self.gate(_working_in(own.rocs, dtype), own.plan)


def _working_in(rocs: Rocs, dtype: torch.dtype) -> Rocs:
    """ROCs for a joinable gate, which does not read `down`, but works in its dtype."""
    return replace(rocs, down=rocs.down[:, :0].to(dtype))
