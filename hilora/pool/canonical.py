"""Canonical ROCs: the one form of an adapter that does not depend on how its factors were written.

(A, B) and (R A, B R^-1) are the same adapter for every invertible R. The singular value decomposition of their
product, B A = U S V', names its components: down = V' (orthonormal rows), up = U S (orthogonal columns, the
strongest first). It comes from thin QR factors of A' and B and an SVD of a rank x rank matrix; B A is never made.
Each row's sign is fixed by making its largest entry positive. Unique where singular values are distinct.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.types import Factors


def canonical(
    down: Float[Tensor, "*site roc in"], up: Float[Tensor, "*site out roc"]
) -> tuple[Float[Tensor, "*site _ in"], Float[Tensor, "*site out _"]]:
    """The canonical form of one site's factors, or of those of several sites: the same product up @ down.

    Returns:
        down with orthonormal rows and up with orthogonal columns of falling length (the singular values), at most
        min(roc, in, out) of them; fp32 or, for fp64 factors, fp64.
    """
    wide = torch.float64 if down.dtype == torch.float64 else torch.float32
    with one_thread(max(down.shape[-1], up.shape[-2])):
        right, small = torch.linalg.qr(down.to(wide).mT)  # (in, r), (r, roc)
        left, little = torch.linalg.qr(up.to(wide))  # (out, r'), (r', roc)
        u, sigma, v = torch.linalg.svd(little @ small.mT, full_matrices=False)
        rows, columns = v @ right.mT, left @ (u * sigma[..., None, :])  # (r, in), (out, r)
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(wide)
    return rows * sign, columns * sign.mT


def canonical_factors(factors: Factors) -> Factors:
    """The canonical form of a whole adapter; sites of one shape are worked out together."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for site, (down, up) in factors.items():
        alike.setdefault((down.shape, up.shape, down.dtype, up.dtype), []).append(site)
    found: Factors = {}
    for sites in alike.values():
        downs, ups = (torch.stack([factors[site][side] for site in sites]) for side in (0, 1))
        found.update(zip(sites, zip(*canonical(downs, ups), strict=True), strict=True))
    return found
