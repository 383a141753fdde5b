"""The one equation, and the stacks that it works on.

    delta = ((x @ down.T) * gate) @ up.T        x (token, in)  gate (token, roc)  delta (token, out)

In memory gate and projections are transposed, (roc, token): ROCs of one adapter are then compared along long
contiguous runs of tokens, which is several times faster than comparing 8 neighbours at a time.

Every token-level and sequence-level method is a way to fill `gate`. Cost per token is in * R + R * out for
the R ROCs that the batch uses; no per-adapter output is ever materialised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.types import Factors, Plan, Site


@runtime_checkable
class Gate(Protocol):
    """A composer: fills the gate from the projections of a site's ROCs."""

    def __call__(
        self, z: Float[Tensor, "roc token"], site: Site, plan: Plan, row: Int[Tensor, " token"]
    ) -> Float[Tensor, "roc token"]:
        """Gated projections, gate * z.

        Args:
            z: down @ x.T, the projection of each token on each ROC.
            site: the stacked ROCs.
            plan: what each row may use.
            row: the row that each token belongs to.
        """
        ...


def add_delta(
    output: Float[Tensor, "token out"],
    x: Float[Tensor, "token in"],
    site: Site,
    plan: Plan,
    row: Int[Tensor, " token"],
    gate: Gate,
) -> Float[Tensor, "token out"]:
    """output + ((x @ down.T) * gate) @ up.T, as one fused product and sum; in the output's dtype."""
    z = gate(site.down @ x.to(site.down.dtype).T, site, plan, row)  # (roc, token)
    if z.dtype != output.dtype:
        return output + (z.T @ site.up.T).to(output.dtype)
    return torch.addmm(output, z.T, site.up.T)


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
        sites[name] = Site(
            down=torch.cat([adapters[c][name][0].to(where, dtype) for c, _ in flat]),
            up=torch.cat([adapters[c][name][1].to(where, dtype) for c, _ in flat], dim=1),
            owner=torch.tensor([c for c, rank in flat for _ in range(rank)], device=where),
            blocks=tuple((rank, torch.tensor(columns, device=where)) for rank, columns in ordered),
        )
    return sites
