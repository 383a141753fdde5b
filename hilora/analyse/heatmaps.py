"""Maps of adapters: by the prompts that are like them, by each other, by layer; the look is `figures`'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from hilora.analyse.look import drawing, short_site, shown
from hilora.analyse.similarity import PROMPTS
from hilora.errors import UnknownNameError
from hilora.evaluate.metrics import Floats

CELL, FONT, BOX = 0.155, 6.5, "#0b7a3b"  # inches, points, green as in the paper
CELLS: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
"""How a map fills its axes: cells as high and as wide as there is room."""
TITLES = {
    "own": "log-likelihood / dim under each adapter's Gaussian (HiLoRA Eq. 3)",
    "cosine": "cosine to each adapter's mean sample (Retriever)",
    "tied": "log-likelihood / dim, one covariance for all adapters",
}


def similarity(result: Mapping[str, Any], name: str) -> Any:
    """One score's heatmap, tasks x adapters; beside "own" the number of adapters selected.

    Args:
        result: from `similarity.against_prompts` or `against_samples`.
        name: of the score.
    """
    if name not in TITLES:
        raise UnknownNameError("score", name, TITLES)
    scores = np.array(result[name])  # (task, adapter)
    tasks, adapters = result["tasks"], result["adapters"]
    panels, width = 2 if name == "own" else 1, CELL * max(len(adapters), 12)
    with drawing() as figure_class:
        figure = figure_class(
            figsize=(width + 2.4 + 1.2 * (panels - 1), CELL * max(len(tasks), 12) + 1.9), layout="constrained"
        )
        grid = figure.subplots(1, panels, sharey=True, squeeze=False, width_ratios=[width, 1.0][:panels])
        axes = grid[0, 0]
        image = axes.imshow(scores, **CELLS, **_colours(name, scores))
        axes.spines[["top", "right"]].set_visible(True)
        name_ticks(axes.set_xticks, [adapter for adapter, _ in adapters], rotation=90)
        name_ticks(axes.set_yticks, [task for task, _ in tasks])
        axes.set_xlabel("adapter")
        axes.set_ylabel(result.get("prompts", PROMPTS))
        axes.tick_params(length=0)
        _boxes(axes, spans(tasks), spans(adapters))
        _bar(figure, image, grid[0], "mean score of the prompts")
        if panels > 1:
            _candidates(grid[0, 1], result["candidates"])
        figure.suptitle(TITLES[name], fontsize=FONT + 3)
    return figure


def _boxes(axes: Any, down: Mapping[str, tuple[int, int]], across: Mapping[str, tuple[int, int]]) -> None:
    """A box around each cluster's tasks and adapters, with its name; none where all are in one."""
    if len(down) < 2:
        return
    for cluster, (top, high) in down.items():
        if cluster in across:
            left, wide = across[cluster]
            _box(axes, left, top, wide, high)
    for cluster, (left, _) in across.items():
        axes.text(left - 0.4, -0.7, shown(cluster), fontsize=FONT, color=BOX, rotation=35, va="bottom")


def _candidates(axes: Any, numbers: Sequence[float]) -> None:
    axes.barh(range(len(numbers)), numbers, height=0.7, color="#bfbfbf")
    for at, number in enumerate(numbers):
        axes.text(number, at, f" {number:.1f}", va="center", fontsize=FONT)
    axes.set_xlim(0, 1.35 * max(numbers))
    axes.set_xlabel("adapters selected\nby Eq. 4 (mean)", fontsize=FONT + 1)
    axes.tick_params(length=0, labelsize=FONT, labelleft=False)


def _colours(name: str, scores: Floats) -> dict[str, Any]:
    """White at 0 where the sign decides, as in Eq. 4; else from low to high."""
    from matplotlib.colors import TwoSlopeNorm

    if name == "own" and scores.min() < 0 < scores.max():
        return {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, scores.min(), scores.max())}
    return {"cmap": "magma"}


def spans(pairs: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Cluster -> (first place, number of places), of (name, cluster) pairs."""
    found, place = {}, 0
    for cluster, members in groupby(pairs, key=lambda pair: pair[1]):
        found[cluster] = (place, len(list(members)))
        place += found[cluster][1]
    return found


def overlap(found: Mapping[str, Any]) -> Any:
    """How far adapters get in each other's way; from `observations.observe`."""
    names, overlap = found["adapters"], found["overlap"]
    size = CELL * max(12, len(names)) + 1.6
    titles = {
        "reach": "share of an adapter's output in another's range, mean over sites\n"
        f"mean of two {overlap['reach_mean']:.3f}, by chance {overlap['chance_mean']:.3f}",
        "cosine": "cosine of two adapters' weight changes, mean over sites\n"
        f"mean of two {overlap['cosine_mean']:.3f}",
    }
    with drawing() as figure_class:
        figure = figure_class(figsize=(2 * size + 2.2, size + 0.6), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            values = np.array(overlap[name], dtype=float)  # None, a pair without a common site, is nan
            np.fill_diagonal(values, np.nan)
            largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
            look = {"cmap": "magma", "vmin": 0} if name == "reach" else {"cmap": "RdBu_r", "vmin": -largest}
            image = axes.imshow(values, vmax=largest, interpolation="nearest", **look)
            name_ticks(axes.set_xticks, names, rotation=90)
            name_ticks(axes.set_yticks, names)
            axes.tick_params(length=0)
            axes.set_title(title, fontsize=FONT + 1.5)
            figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=FONT)
            axes.set_xlabel("adapter whose output it is" if name == "reach" else "adapter")
            axes.set_ylabel("adapter whose range it is" if name == "reach" else "adapter")
    return figure


def weights(found: Mapping[str, Any], method: str, most: int = 12) -> Any:
    """How adapters are weighed, layer by layer, a panel for each task; the task's own adapter in a box.

    Args:
        found: "sites" and "tasks", task -> {"adapters", "weights" (site, adapter)}.
        method: that weighs them.
        most: adapters of a panel, by their mean weight.
    """
    layers = [short_site(site) for site in found["sites"]]
    tasks = found["tasks"]
    with drawing() as figure_class:
        wide, high = CELL * max(20, len(layers)) + 2.4, CELL * (most + 6)
        figure = figure_class(figsize=(wide, high * len(tasks) + 0.8), layout="constrained")
        panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
        largest = max(float(np.max(of["weights"])) for of in tasks.values())
        for axes, (task, of) in zip(panels, tasks.items(), strict=True):
            values = np.array(of["weights"]).T  # (adapter, site)
            order = np.argsort(-values.mean(1), kind="stable")[:most]
            names = [of["adapters"][i] for i in order]
            image = axes.imshow(values[order], **CELLS, vmin=0, vmax=largest)
            name_ticks(axes.set_yticks, names)
            axes.set_title(f"prompts of {shown(task)}", fontsize=FONT + 2, loc="left")
            axes.tick_params(length=0)
            if task in names:
                _box(axes, 0, names.index(task), len(layers), 1)
        name_ticks(panels[-1].set_xticks, layers, rotation=90)
        _bar(figure, image, panels, "mean weight of a token")
        figure.suptitle(f"weights by {shown(method)}", fontsize=FONT + 3)
    return figure


def _bar(figure: Any, image: Any, panels: Iterable[Any], label: str) -> None:
    """What the colours of all panels mean, beside them."""
    bar = figure.colorbar(image, ax=list(panels), location="right", shrink=0.6, pad=0.01)
    bar.ax.tick_params(labelsize=FONT)
    bar.set_label(label, fontsize=FONT)


def _box(axes: Any, left: int, top: int, wide: int, high: int) -> None:
    """A box around so many cells from one on."""
    from matplotlib.patches import Rectangle

    corner = (left - 0.5, top - 0.5)
    axes.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=BOX, linewidth=1.6))


def name_ticks(ticks: Any, names: Sequence[str], **look: Any) -> None:
    """A name at each row or column, by an axes' `set_xticks` or `set_yticks`."""
    ticks(range(len(names)), [shown(name) for name in names], fontsize=FONT, **look)
