"""The numbers of `hilora.analyse.rocs` over many sites: HiLoRA's three observations (section 3.1), measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hilora.analyse.rocs import (
    FORMS,
    PARTS,
    Numbers,
    canonical_at,
    clusters,
    directions,
    groups,
    overlap,
    redundancy,
    stack,
)
from hilora.errors import InputError
from hilora.types import Factors

DIGITS = 4


def observe(
    adapters: Mapping[str, Factors],
    sites: Sequence[str],
    *,
    permutations: int = 100,
    seed: int = 0,
    on_site: Callable[[int], None] | None = None,
) -> Numbers:
    """All three observations at some sites.

    Args:
        adapters: name -> factors.
        sites: names of the sites to average over.
        permutations: labellings that the silhouettes are compared with.
        seed: of those.
        on_site: called with the number of sites done.

    Returns:
        "clusters"[form][part][signs]: silhouette by adapter, mean and standard deviation over sites, that of permuted
        labels, and p, the share of permutations whose mean over sites is as high. "directions"[form][part],
        "groups"[part], "redundancy", "overlap": as in `hilora.analyse.rocs`, means over sites. "by_site": the
        silhouettes at each site.

    Raises:
        InputError: a site that nothing can be measured at, or no permutation.
    """
    if permutations < 1:
        raise InputError(f"permutations is a number of labellings: got {permutations}, expected at least 1, say 100.")
    listed, generator = list(adapters.values()), torch.Generator().manual_seed(seed)
    drawn: dict[tuple[str, str, str], list[Tensor]] = {}
    told: dict[tuple[str, ...], list[Numbers]] = {}
    matrices: dict[str, list[Tensor]] = {}
    for done, site in enumerate(sites, start=1):
        canonicals = canonical_at(listed, site)
        for form, own in zip(FORMS, (listed, canonicals), strict=True):
            for part in PARTS:
                found = stack(own, site, part)
                for signs, scores in clusters(found, permutations, generator).items():
                    drawn.setdefault((form, part, signs), []).append(scores)
                told.setdefault(("directions", form, part), []).append(directions(found))
                if form == "raw":  # canonical ROCs of one adapter are at right angles
                    told.setdefault(("groups", part), []).append(groups(found))
        told.setdefault(("redundancy",), []).append(redundancy(canonicals, site))
        for name, matrix in overlap(canonicals, site).items():
            matrices.setdefault(name, []).append(matrix)
        if on_site:
            on_site(done)
    result: Numbers = {"adapters": list(adapters), "sites": list(sites), "permutations": permutations}
    for kind, draws in drawn.items():
        _put(result, ("clusters", *kind), _summary(torch.stack(draws)))
    for keys, rows in told.items():
        _put(result, keys, _means(rows))
    result["overlap"] = _overlap({name: torch.stack(found) for name, found in matrices.items()})
    result["by_site"] = {
        site: {"/".join(kind): round(float(draws[i][0]), DIGITS) for kind, draws in drawn.items()}
        for i, site in enumerate(sites)
    }
    return result


def table(found: Numbers) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The numbers that matter most, as heading and rows; "compare" is what chance or permuted labels give."""
    rows: list[tuple[str, ...]] = []
    for part in PARTS:
        for signs, how in (("sign_free", "|cos|"), ("as_stored", "cos")):
            of = found["clusters"]["raw"][part][signs]
            rows.append((f"{part} vectors cluster by adapter, by {how}", *_cells(of, "silhouette", "permuted")))
    for part in PARTS:
        of = found["directions"]["raw"][part]
        rows.append((f"{part} vectors: mean |cos| in an adapter", *_cells(of, "within", "random")))
        rows.append((f"{part} vectors: mean |cos| of two adapters", *_cells(of, "between", "random")))
    for part in PARTS:
        of = found["groups"][part]
        rows.append((f"{part} vectors of an adapter in two groups, signs as stored", *_cells(of, "as_stored")))
        rows.append((f"{part} vectors of an adapter in two groups, signs aside", *_cells(of, "sign_free")))
    rows.append(("effective rank of an adapter; its rank", *_cells(found["redundancy"], "effective_rank", "rank")))
    rows.append(("share of canonical ROCs with 90 % of its size", *_cells(found["redundancy"], "for_90_percent")))
    rows.append(("share of an output in another's range", *_cells(found["overlap"], "reach_mean", "chance_mean")))
    rows.append(("cosine of two adapters' weight changes", *_cells(found["overlap"], "cosine_mean")))
    return ("ROCs as stored, mean over sites", "measured", "compare"), rows


def _cells(of: Numbers, name: str, compare: str | None = None) -> tuple[str, str]:
    values = (of.get(name), of.get(compare or f"{name}_random"))
    measured, chance = ("-" if value is None else f"{value:.3f}" for value in values)
    return measured, chance


def _summary(scores: Tensor) -> Numbers:
    """Of silhouettes (site, draw), the true labels' in the first column."""
    true, shuffled = scores[:, 0], scores[:, 1:]
    as_high = int((shuffled.mean(0) >= true.mean()).sum())
    return {
        "silhouette": round(float(true.mean()), DIGITS),
        "over_sites_sd": round(float(true.std(correction=0)), DIGITS),
        "permuted": round(float(shuffled.mean()), DIGITS),
        "p": round((1 + as_high) / (1 + shuffled.shape[1]), DIGITS),
    }


def _overlap(stacked: Mapping[str, Tensor]) -> Numbers:
    """Means over sites of (site, adapter, adapter), and over pairs of different adapters."""
    found: Numbers = {}
    for name, matrices in stacked.items():
        mean = matrices.nanmean(0)
        apart = ~torch.eye(len(mean), dtype=torch.bool)
        found[f"{name}_mean"] = _number(float(mean[apart].nanmean()))
        if name != "chance":
            found[name] = [[_number(value) for value in row] for row in mean.tolist()]
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)


def _means(rows: Sequence[Numbers]) -> Numbers:
    """Mean of each number over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    kept = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: round(sum(values) / len(values), DIGITS) for name, values in kept.items() if values}


def _put(result: Numbers, keys: Sequence[str], value: Numbers) -> None:
    for key in keys[:-1]:
        result = result.setdefault(key, {})
    result[keys[-1]] = value
