"""The one equation, and the stacks that it works on.

    delta = ((x @ down.T) * gate) @ up.T        x (token, in)  gate (token, roc)  delta (token, out)

In memory gate and projections are transposed, (roc, token): ROCs of one adapter are then compared along long
contiguous runs of tokens, which is several times faster than comparing 8 neighbours at a time. A site is bound
to the batch's plan once (`Gate`), so that a forward pass does nothing that depends on the plan alone.

Every token-level and sequence-level method is a way to fill `gate`. Cost per token is in * R + R * out for
the R ROCs that the batch uses; no per-adapter output is ever materialised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.types import Factors, Plan, Rocs, Site

Spread = Callable[[Tensor], Tensor]
"""What each row has, (..., batch) -> what each of its tokens has, (..., token): says which row a token is of."""


@dataclass(frozen=True)
class Tokens:
    """The tokens at a site: a `Spread`, for gates that are trained also what the site reads.

    Attributes:
        each: tokens of a row, which lie together.
        x: (token, in).
    """

    each: int
    x: Float[Tensor, "token in"]

    def __call__(self, of_rows: Tensor) -> Tensor:
        """(..., batch) -> (..., token)."""
        return of_rows if self.each == 1 else of_rows.repeat_interleave(self.each, -1)


Gated = Callable[[Tensor, Tokens], Tensor]
"""(z (roc, token), tokens) -> gate * z, of the same shape."""


@runtime_checkable
class Gate(Protocol):
    """A composer: how much of each ROC's projection a token gets.

    Attributes:
        joinable: whether each adapter at each site is gated by itself, so that the ROCs of several sites, and each
            row's own ones, may be gated in one go; not so where adapters are compared. Such a gate does not read
            `down`, and works in its dtype.
    """

    joinable: ClassVar[bool]

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind the gate to ROCs and a plan; what depends on them alone is worked out here, once a batch.

        Args:
            rocs: the stacked ROCs; of one site (a `Site`) unless the gate is joinable. Then `size` may be
                (roc, batch) where each row has ROCs of its own.
            plan: what each row may use; `ranks` may be (batch, adapter) where `size` is (roc, batch).

        Returns:
            the function that gates projections z = down @ x.T, called for every forward pass.
        """
        ...


def add_delta(output: Float[Tensor, "token out"], z: Float[Tensor, "roc token"], up: Tensor) -> Tensor:
    """output + (gated z).T @ up.T, as one fused product and sum; in the output's dtype.

    Without gradients the sum is made in `output` itself, which the module has just computed for us.
    """
    if z.dtype != output.dtype:
        return output + (z.T @ up.T).to(output.dtype)
    if torch.is_grad_enabled():
        return torch.addmm(output, z.T, up.T)
    return output.addmm_(z.T, up.T)


def join(parts: Sequence[Rocs]) -> Rocs:
    """The ROCs of several modules that read the same input, one after another."""
    if len(parts) == 1:
        return parts[0]
    down, size, owner = (torch.cat([getattr(part, name) for part in parts]) for name in ("down", "size", "owner"))
    return Rocs(down, size, owner, tuple(block for part in parts for block in part.blocks))


def stack_sites(
    adapters: Sequence[Factors], placement: Mapping[str, tuple[torch.device, torch.dtype]]
) -> dict[str, Site]:
    """Stack the adapters' ROCs site by site; adapter i's column in the plan is i.

    Adapters of one rank lie next to each other, so that no rank is padded to another.

    Args:
        adapters: factors of the plan's adapters, in the plan's order; a site may be missing in some.
        placement: device and dtype of each site's module.
    """
    sites = {}
    for name in sorted({name for factors in adapters for name in factors}):
        where, dtype = placement[name]
        by_rank: dict[int, list[int]] = {}
        for column, factors in enumerate(adapters):
            if name in factors:
                by_rank.setdefault(factors[name][0].shape[0], []).append(column)
        ordered = [(rank, columns) for rank, columns in sorted(by_rank.items())]
        flat = [(column, rank) for rank, columns in ordered for column in columns]
        up = torch.cat([adapters[c][name][1].to(where, dtype) for c, _ in flat], dim=1)
        sites[name] = Site(
            down=torch.cat([adapters[c][name][0].to(where, dtype) for c, _ in flat]),
            size=up.norm(dim=0),
            owner=torch.tensor([c for c, rank in flat for _ in range(rank)], device=where),
            blocks=tuple((rank, torch.tensor(columns, device=where)) for rank, columns in ordered),
            name=name,
            up=up,
        )
    return sites
