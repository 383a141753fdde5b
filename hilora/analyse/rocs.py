"""What HiLoRA's three observations about ROCs (section 3.1) come to in numbers.

    (i)   down vectors are random and say little of the task      `silhouettes`, `directions`
    (ii)  up vectors cluster by adapter, in several groups each   `silhouettes`, `two_groups`
    (iii) a whole adapter is redundant, and adapters interfere    `redundancy`, `overlap`

The paper reads them off scatter plots. Two things that such a plot cannot tell are kept apart here. Signs are not
identified: (a, b) and (-a, -b) are the same ROC. "Sign-free" numbers compare directions by |cos| and cannot see the
sign; "as stored" ones compare by cos, as the eye does. Bases are not identified either: (R A, B R^-1) is the same
adapter. Canonical ROCs (`pool.canonical`) are one fixed basis; in it the vectors of one adapter are orthogonal, so
that they can never cluster by adapter. Only `redundancy` and `overlap` do not depend on the basis at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from hilora.base.threads import one_thread
from hilora.errors import InputError, UnknownNameError
from hilora.pool.canonical import canonical
from hilora.types import Factors

PARTS = ("down", "up")
FORMS = ("raw", "canonical")
SIGNS = ("sign_free", "as_stored")
AT_ONCE = 16
"""Labellings that `silhouettes` works on together."""
RANDOM_DRAWS = 20
ENERGY = 0.9

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Directions:
    """Directions of the ROCs of all adapters at one site, e.g. their down vectors.

    Attributes:
        units: (roc, width) fp64, each of length 1.
        owner: (roc,) whose it is, counted over the adapters that have the site.
        place: (roc,) its number within its adapter.
        size: (roc,) |a| |b|, as a share of the largest in its adapter.
    """

    units: Float[Tensor, "roc width"]
    owner: Int[Tensor, " roc"]
    place: Int[Tensor, " roc"]
    size: Float[Tensor, " roc"]


def by_layer(sites: Iterable[str]) -> list[str]:
    """Sites in the order of their layers: 2 before 10."""
    return sorted(sites, key=lambda site: [(piece.isdigit(), piece.zfill(6)) for piece in site.split(".")])


def choose_sites(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Sites by their full names or by how the names end ("q_proj", "layers.3.self_attn.q_proj"), layer by layer.

    Raises:
        UnknownNameError: no site's name ends so.
    """
    chosen: list[str] = []
    for name in wanted:
        found = [site for site in by_layer(known) if site == name or site.endswith(f".{name}")]
        if not found:
            raise UnknownNameError("site", name, {*known, *(site.rsplit(".", 1)[-1] for site in known)})
        chosen += [site for site in found if site not in chosen]
    return chosen


def stack(adapters: Sequence[Factors], site: str, part: str) -> Directions:
    """The directions of one part ("down" or "up") at a site, of the adapters that have it.

    Raises:
        InputError: fewer than two adapters have the site, or none has two ROCs there.
    """
    found = [factors[site] for factors in adapters if site in factors]
    vectors = [(down if part == "down" else up.T).double() for down, up in found]
    ranks = torch.tensor([len(own) for own in vectors], dtype=torch.long)
    if len(found) < 2 or int(ranks.max()) < 2:
        raise InputError(
            f"Site {site!r} has {len(found)} adapter(s) of rank {int(ranks.max()) if found else 0} at most; clusters "
            f"need two adapters, and two ROCs in one of them. Choose another site or more adapters."
        )
    owner = torch.arange(len(ranks)).repeat_interleave(ranks)
    place = torch.cat([torch.arange(int(rank)) for rank in ranks])
    lengths = [down.double().norm(dim=1) * up.double().norm(dim=0) for down, up in found]
    size = torch.cat([own / own.max().clamp_min(1e-300) for own in lengths])
    return Directions(normalize(torch.cat(vectors), dim=1), owner, place, size)


def canonical_at(adapters: Sequence[Factors], site: str) -> list[Factors]:
    """The adapters in canonical form, fp64, with this site alone; empty where one lacks it."""
    return [{site: canonical(*(tensor.double() for tensor in own[site]))} if site in own else {} for own in adapters]


def distances(cosines: Float[Tensor, "roc roc"], signs: str) -> Float[Tensor, "roc roc"]:
    """1 - |cos| (sign-free) or 1 - cos (as stored), 0 on the diagonal."""
    likeness = cosines.abs() if signs == "sign_free" else cosines
    return (1 - likeness).clamp_min(0).fill_diagonal_(0)


def silhouettes(distance: Float[Tensor, "roc roc"], labels: Int[Tensor, "draw roc"]) -> Float[Tensor, "draw roc"]:
    """Silhouette of each ROC under each labelling; scikit-learn's `silhouette_samples`, many labellings at once.

    s_j = (b_j - a_j) / max(a_j, b_j), a_j the mean distance to the ROC's own cluster without itself, b_j that to the
    nearest other cluster; 0 where a ROC is alone in its cluster.
    """
    scores = []
    for part in labels.split(AT_ONCE):
        member = one_hot(part).to(distance.dtype)  # (draw, roc, cluster)
        sums, sizes = distance @ member, member.sum(1)  # (draw, roc, cluster), (draw, cluster)
        mates = sizes.gather(1, part) - 1
        own = sums.gather(2, part[:, :, None])[:, :, 0] / mates.clamp_min(1)
        other = (sums / sizes[:, None]).nan_to_num(torch.inf)  # 0 / 0 in a cluster that nobody is in
        nearest = other.scatter(2, part[:, :, None], torch.inf).amin(2)
        score = (nearest - own) / torch.maximum(own, nearest)
        scores.append(score.nan_to_num(0.0).masked_fill(mates == 0, 0.0))
    return torch.cat(scores)


def clusters(of: Directions, permutations: int, generator: torch.Generator) -> dict[str, Float[Tensor, " draw"]]:
    """Silhouette by adapter, the true labels first, then permuted ones: sign-free and as stored."""
    shuffled = [of.owner[torch.randperm(len(of.owner), generator=generator)] for _ in range(permutations)]
    labels, cosines = torch.stack([of.owner, *shuffled]), of.units @ of.units.T
    return {signs: silhouettes(distances(cosines, signs), labels).mean(1) for signs in SIGNS}


def directions(of: Directions) -> Numbers:
    """How alike directions are: mean |cos| within and between adapters, and what random ones would have.

    "same_place" is between ROCs of one number in different adapters: high where adapters started from one seed.
    "dimensions" is n^2 / sum cos^2, the number of equally used dimensions that would give the same cosines.
    """
    cosines, count, width = of.units @ of.units.T, *of.units.shape
    kin = of.owner[:, None] == of.owner
    pair = kin & ~torch.eye(count, dtype=torch.bool)
    same = ~kin & (of.place[:, None] == of.place)
    return {
        "within": _mean(cosines[pair].abs()),
        "within_signed": _mean(cosines[pair]),
        "between": _mean(cosines[~kin].abs()),
        "same_place": _mean(cosines[same].abs()),
        "random": math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi),  # E |cos|
        "dimensions": count**2 / float(cosines.square().sum()),
        "dimensions_random": count**2 / (count + count * (count - 1) / width),
    }


@one_thread()
def two_groups(units: Float[Tensor, "roc width"], signs: str) -> float:
    """How well one adapter's directions fall into two groups of two or more: the best cut along their first axis.

    Of each cut, the lower of the two groups' mean silhouettes: one tight group and some stragglers are not two
    groups. Sign-free: each ROC is first turned to one side of the direction that all have most in common.
    """
    if signs == "sign_free":
        common = torch.linalg.svd(units, full_matrices=False)[2][0]
        units = units * torch.where(units @ common < 0, -1.0, 1.0)[:, None].to(units.dtype)
    axis = torch.linalg.svd(units - units.mean(0), full_matrices=False)[2][0]
    place = (units @ axis).argsort().argsort()  # (roc,) rank along the axis
    behind = place >= torch.arange(2, len(units) - 1)[:, None]  # (cut, roc)
    scores = silhouettes(distances(units @ units.T, "as_stored"), behind.long())
    means = [(scores * group).sum(1) / group.sum(1) for group in (behind, ~behind)]
    return float(torch.minimum(*means).max())


@cache
def two_random_groups(count: int, width: int, signs: str) -> float:
    """`two_groups` of random directions: what a cut finds where there is nothing."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(RANDOM_DRAWS, count, width, generator=generator, dtype=torch.float64)
    return sum(two_groups(units, signs) for units in normalize(drawn, dim=2)) / RANDOM_DRAWS


def groups(of: Directions) -> Numbers:
    """`two_groups`, mean over the adapters with at least four ROCs, and the same of random directions."""
    own = [of.units[of.owner == i] for i in range(int(of.owner.max()) + 1)]
    own = [units for units in own if len(units) >= 4]
    found: Numbers = {}
    for signs in SIGNS if own else ():
        found[signs] = sum(two_groups(units, signs) for units in own) / len(own)
        found[f"{signs}_random"] = sum(two_random_groups(*units.shape, signs) for units in own) / len(own)
    return found


def redundancy(canonicals: Sequence[Factors], site: str) -> Numbers:
    """How few canonical ROCs carry an adapter's B A: with singular values s, (sum s^2)^2 / sum s^4 of them.

    "for_90_percent" is the share of the ROCs, the strongest first, that hold 90 % of sum s^2. Means over adapters.
    """
    told: dict[str, list[float]] = {}
    for own in canonicals:
        energy = own[site][1].square().sum(0) if site in own else torch.zeros(1)
        if energy.any():  # an adapter may change nothing here
            energy = energy / energy.sum()
            told.setdefault("effective_rank", []).append(1 / float(energy.square().sum()))
            told.setdefault("rank", []).append(len(energy))
            told.setdefault("for_90_percent", []).append((1 + int((energy.cumsum(0) < ENERGY).sum())) / len(energy))
    return {name: sum(values) / len(values) for name, values in told.items()}


def overlap(canonicals: Sequence[Factors], site: str) -> dict[str, Float[Tensor, "adapter adapter"]]:
    """How much adapters get in each other's way; nan where one lacks the site.

    "reach"[i, j]: the share of what j adds (B_j A_j of white inputs) that lies in the span of i's up vectors;
    "chance": what it would be for a random span. "cosine"[i, j]: cos between B_i A_i and B_j A_j as long vectors;
    negative where they undo each other.
    """
    count = len(canonicals)
    reach, cosine, chance = (torch.full((count, count), torch.nan, dtype=torch.float64) for _ in range(3))
    whole = {i: own[site] for i, own in enumerate(canonicals) if site in own}
    for i, (down_i, up_i) in whole.items():
        basis = normalize(up_i, dim=0)  # orthonormal
        chance[i, list(whole)] = up_i.shape[1] / up_i.shape[0]
        for j, (down_j, up_j) in whole.items():
            energy = up_j.square().sum()  # |B_j A_j|^2, canonical down rows being orthonormal
            reach[i, j] = (basis.T @ up_j).square().sum() / energy
            # <B_i A_i, B_j A_j> = sum (B_i' B_j) * (A_i A_j')
            inner = ((up_i.T @ up_j) * (down_i @ down_j.T)).sum()
            cosine[i, j] = inner / (energy * up_i.square().sum()).sqrt()
    return {"reach": reach, "chance": chance, "cosine": cosine}


def principal_axes(of: Directions) -> tuple[Float[Tensor, "roc 2"], Float[Tensor, " 2"]]:
    """Coordinates of the directions along the two main axes of {size v, -size v}, and each axis's share of squares.

    The mirror images make the mean zero and the axes free of signs. An axis points to its largest coordinate.
    """
    _, sizes, axes = torch.linalg.svd(of.units * of.size[:, None], full_matrices=False)
    points = of.units @ axes[:2].T
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))  # a site may be one wide
    flip = points.gather(0, points.abs().argmax(0, keepdim=True))  # (1, 2)
    points = points * torch.where(flip < 0, -1.0, 1.0).to(points.dtype)
    shares = torch.nn.functional.pad(sizes[:2].square() / sizes.square().sum(), (0, max(0, 2 - len(sizes))))
    return points, shares


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
