"""The charts: ROCs in the plane, their scores, selections, retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hilora.analyse.look import COLOURS, INK, SEEN, UNSEEN, drawing, looks, short_site, shown
from hilora.analyse.rocs import FORMS, PARTS, Directions, principal_axes

SELECTED = {"adapters": "adapters selected", "ROCs": "ROCs that a token uses at a site"}


def roc_planes(kinds: Mapping[tuple[str, str], Directions], names: Sequence[str], site: str) -> Any:
    """ROC directions of all adapters at one site on their first two principal axes (HiLoRA Fig. 2, 7, 8).

    Args:
        kinds: (form, part) -> directions.
        names: of the adapters that have the site, in the order of their owners.
        site: its name.
    """
    styles = looks(names)
    with drawing() as figure_class:
        figure = figure_class(figsize=(8.6, 7.4), layout="constrained")
        grid = figure.subplots(len(FORMS), len(PARTS))
        for row, form in zip(grid, FORMS, strict=True):
            for axes, part in zip(row, PARTS, strict=True):
                of = kinds[form, part]
                points, shares = (found.numpy() for found in principal_axes(of))
                for i, (name, look) in enumerate(zip(names, styles, strict=True)):
                    mine = (of.owner == i).numpy()
                    own, area = points[mine], 6 + 34 * of.size.numpy()[mine] ** 2
                    axes.scatter(*own.T, s=area, linewidths=0, alpha=0.9, label=shown(name), **look)
                    hollow = {"facecolors": "none", "edgecolors": look["color"], "marker": look["marker"]}
                    axes.scatter(*-own.T, s=area, linewidths=0.6, alpha=0.5, **hollow)
                axes.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
                axes.axvline(0, color="#dddddd", linewidth=0.8, zorder=0)
                halves = (-1, -0.5, 0, 0.5, 1)
                axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), box_aspect=1, xticks=halves, yticks=halves)
                axes.set_title(f"{part} vectors, {'as stored' if form == 'raw' else 'canonical'} ROCs")
                axes.set_xlabel(f"axis 1 ({shares[0]:.0%} of the squares)")
                axes.set_ylabel(f"axis 2 ({shares[1]:.0%})")
        handles, labels = grid[0][0].get_legend_handles_labels()
        legend = figure.legend(
            handles, labels, loc="outside right center", title="adapter", ncols=1 + len(names) // 30
        )
        for handle in legend.legend_handles:
            handle.set_sizes([28])
        figure.suptitle(
            f"Directions of the ROCs at {shown(site, 70)}, the larger the more a ROC can add\n"
            "filled: a ROC at length 1; hollow: its mirror image, which is the same ROC",
            fontsize=10,
        )
    return figure


def roc_scores(found: Mapping[str, Any]) -> Any:
    """Silhouettes by adapter, site by site, and how alike directions are; from `observations.observe`."""
    sites = list(found["by_site"])
    breaks = [i for i in range(1, len(sites)) if sites[i].rsplit(".", 1)[-1] != sites[i - 1].rsplit(".", 1)[-1]]
    with drawing() as figure_class:
        figure = figure_class(figsize=(9.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
        for part, colour in zip(PARTS, COLOURS, strict=False):
            for signs, line in (("sign_free", "-"), ("as_stored", ":")):
                heights = [found["by_site"][site][f"raw/{part}/{signs}"] for site in sites]
                label = f"{part}, {'by |cos|' if signs == 'sign_free' else 'by cos'}"
                marker = "o" if part == "up" else "s"
                at = np.insert(np.arange(len(sites), dtype=float), breaks, np.nan)  # a line for each module
                height = np.insert(np.array(heights), breaks, np.nan)
                left.plot(at, height, line, color=colour, label=label, marker=marker, markersize=3)
            level = found["clusters"]["raw"][part]["sign_free"]["permuted"]
            left.axhline(level, color=colour, linewidth=0.8, linestyle=(0, (1, 3)))
        left.axhline(0, color=INK, linewidth=0.6)
        step = max(1, len(sites) // 12)
        ticks = range(0, len(sites), step)
        left.set_xticks(ticks, [short_site(sites[i]) for i in ticks], rotation=60, ha="right", fontsize=7)
        left.set_xlabel("site")
        left.set_ylabel("mean silhouette by adapter (-1 to 1)")
        left.set_title("Do ROCs as stored cluster by adapter?\nthin dotted: permuted labels, by |cos|")
        left.margins(y=0.2)
        left.legend(fontsize=7.5, ncols=2, loc="upper right")
        _likeness_bars(right, found["directions"])
    return figure


def _likeness_bars(axes: Any, found: Mapping[str, Any]) -> None:
    kinds = [(form, part) for form in FORMS for part in PARTS]
    bars = {"within": "one adapter's", "between": "of two adapters", "same_place": "the same number in two"}
    for i, (key, label) in enumerate(bars.items()):
        heights = [found[form][part].get(key, 0.0) for form, part in kinds]
        axes.bar(np.arange(4) + 0.26 * (i - 1), heights, 0.24, color=COLOURS[2 + i], label=label)
    for at, (form, part) in enumerate(kinds):
        level = found[form][part]["random"]
        axes.plot([at - 0.42, at + 0.42], [level, level], color=INK, label="random directions" if not at else None)
    axes.set_xticks(range(4), [f"{part}\n{'as stored' if form == 'raw' else 'canonical'}" for form, part in kinds])
    axes.set_ylabel("mean |cos| of two ROCs (0 to 1)")
    axes.set_title("How alike are ROCs' directions?\nof one adapter, canonical ones are at right angles")
    axes.legend(fontsize=7.5)


def selections(groups: Mapping[str, Mapping[str, Any]], method: str) -> Any:
    """How many adapters and ROCs rows are given, seen and unseen; from `selection.count_selected`."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(7.6, 0.8 + 1.7 * len(groups)), layout="constrained")
        grid = figure.subplots(len(groups), 2, sharex="col", squeeze=False)
        for row, (label, group) in zip(grid, groups.items(), strict=True):
            colour = SEEN if group["seen"] else UNSEEN
            for axes, what in zip(row, SELECTED, strict=True):
                counts = {int(value): times for value, times in group[what]["counts"].items()}
                shares = [100 * times / group["rows"] for times in counts.values()]
                axes.bar(list(counts), shares, width=0.85, color=colour)
                axes.axvline(group[what]["mean"], color=INK, linewidth=1, linestyle="--")
                axes.set_title(f"{label}: {group[what]['mean']:.1f} {what} on average", loc="left")
                axes.set_ylabel(f"% of {group['rows']} rows")
                axes.xaxis.get_major_locator().set_params(integer=True)
        for axes, (what, label) in zip(grid[-1], SELECTED.items(), strict=True):
            most = max(int(value) for group in groups.values() for value in group[what]["counts"])
            axes.set_xlim(-0.6, most + 0.6)
            axes.set_xlabel(f"{label} (number)")
        figure.suptitle(f"What {shown(method, 60)} selects (dashed: mean)", fontsize=10)
    return figure


def retrieval(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, across: str, ticks: Sequence[int], what: str
) -> Any:
    """Top-k accuracy in percent, with 95 % intervals where there are some.

    Args:
        curves: label -> "x", "y" and, if known, "low" and "high", in percent.
        across: the axis's label.
        ticks: its marks.
        what: the title.
    """
    with drawing() as figure_class:
        figure = figure_class(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for look, (label, curve) in zip(looks(list(curves)), curves.items(), strict=True):
            axes.plot(curve["x"], curve["y"], label=shown(label, 40), markersize=5, **look)
            if "low" in curve:
                axes.fill_between(curve["x"], curve["low"], curve["high"], color=look["color"], alpha=0.15, lw=0)
        axes.set_xticks(ticks)
        axes.set_xlabel(across)
        axes.set_ylabel("prompts whose own adapter is among the best (%)")
        axes.set_title(f"{what}\nbands: 95 % bootstrap intervals")
        axes.grid(axis="y")
        axes.legend(loc="lower right")
    return figure
