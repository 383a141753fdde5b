"""The batch's adapters as sites: their ROCs stacked along one axis, ragged ranks welcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hilora.types import Factors, Site


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
