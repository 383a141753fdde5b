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

from hilora.types import Factors


def canonical(
    down: Float[Tensor, "roc in"], up: Float[Tensor, "out roc"]
) -> tuple[Float[Tensor, "_ in"], Float[Tensor, "out _"]]:
    """The canonical form of one site's factors: the same product up @ down, of rank at most min(roc, in, out).

    Returns:
        down with orthonormal rows and up with orthogonal columns of falling length (the singular values), fp32
        or, for fp64 factors, fp64.
    """
    wide = torch.float64 if down.dtype == torch.float64 else torch.float32
    right, small = torch.linalg.qr(down.to(wide).T)  # (in, r), (r, roc)
    left, little = torch.linalg.qr(up.to(wide))  # (out, r'), (r', roc)
    u, sigma, v = torch.linalg.svd(little @ small.T, full_matrices=False)
    rows, columns = v @ right.T, left @ (u * sigma)  # (r, in), (out, r)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(wide)
    return rows * sign, columns * sign[:, 0]


def canonical_factors(factors: Factors) -> Factors:
    """The canonical form of a whole adapter."""
    return {site: canonical(down, up) for site, (down, up) in factors.items()}
