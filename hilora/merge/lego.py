"""LEGO (Zhao et al. 2025, "Merging LoRAs like Playing LEGO", arXiv 2409.16167): ROCs clustered into k new ones.

At each site the ROCs of all adapters, as vectors m_j = [a_j ; b_j], fall into k clusters by k-means; a cluster S
becomes one ROC. Averaging shrinks vectors, so two weights restore the scale:

    parameters   mu_S = mean of S, rescaled to the mean norm of its members
    output       delta = sqrt(r / k) sum_S b_S a_S . x        r the adapters' mean rank (Theorem 3.1)

HiLoRA's table uses k = 24. No official code is public; what the paper leaves open is chosen here: Euclidean norms
on the whole of [a ; b], vectors clustered as they are (alpha / r belongs to b), scikit-learn's k-means++ with one
start and seed 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hilora.errors import HiloraError, InputError
from hilora.types import Factors


@dataclass(frozen=True)
class Lego:
    """k ROCs at each site, whatever the number of adapters (all ROCs as they are where there are no more than k).

    Args:
        k: ROCs of the merged adapter.
    """

    k: int = 24

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of ROCs after merging: got {self.k}, expected at least 1.")

    def __call__(self, adapters: Sequence[Factors], hashes: Sequence[str] = ()) -> Factors:
        """Merge adapters, at least one."""
        merged: Factors = {}
        for site in sorted({site for factors in adapters for site in factors}):
            parts = [factors[site] for factors in adapters if site in factors]
            wide = torch.float64 if parts[0][0].dtype == torch.float64 else torch.float32
            width = parts[0][0].shape[1]
            units = torch.cat([torch.cat([down, up.T], dim=1).to(wide) for down, up in parts])  # (roc, in + out)
            owner = cluster(units, self.k)
            centres = reweighted_means(units, owner)
            output = ((len(units) / len(parts)) / len(centres)) ** 0.5
            merged[site] = centres[:, :width].contiguous(), (centres[:, width:].T * output).contiguous()
        return merged


def cluster(units: Tensor, k: int) -> Tensor:
    """(roc,) the cluster of each unit, numbered without gaps."""
    if len(units) <= k:
        return torch.arange(len(units))
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise HiloraError("LEGO clusters with scikit-learn. Run: pip install 'hilora[merge]'") from error
    labels = KMeans(k, n_init=1, random_state=0).fit(units.numpy()).labels_
    owner: Tensor = torch.unique(torch.from_numpy(labels).long(), return_inverse=True)[1]
    return owner


def reweighted_means(units: Tensor, owner: Tensor) -> Tensor:
    """(cluster, in + out): each cluster's mean, of its members' mean norm."""
    count = torch.bincount(owner)[:, None]
    clusters = len(count)
    sums = torch.zeros(clusters, units.shape[1], dtype=units.dtype).index_add_(0, owner, units)
    norms = torch.zeros(clusters, 1, dtype=units.dtype).index_add_(0, owner, units.norm(dim=1, keepdim=True))
    means = sums / count
    lengths = means.norm(dim=1, keepdim=True).clamp_min(torch.finfo(units.dtype).tiny)  # members may cancel
    rescaled: Tensor = means / lengths * (norms / count)
    return rescaled
