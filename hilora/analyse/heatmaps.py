"""Maps: similarity of prompts and adapters, ROCs that tokens used, overlap of adapters; the look is `figures`'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from hilora.analyse.activation import Activation
from hilora.analyse.figures import GREY, INK, drawing, short_site, shown
from hilora.analyse.similarity import PROMPTS
from hilora.errors import UnknownNameError
from hilora.evaluate.metrics import Floats

CELL, FONT, BOX = 0.155, 6.5, "#0b7a3b"  # inches, points, green as in the paper
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
        image = axes.imshow(scores, aspect="auto", interpolation="nearest", **_colours(name, scores))
        axes.spines[["top", "right"]].set_visible(True)
        _name(axes.set_xticks, [adapter for adapter, _ in adapters], rotation=90)
        _name(axes.set_yticks, [task for task, _ in tasks])
        axes.set_xlabel("adapter")
        axes.set_ylabel(result.get("prompts", PROMPTS))
        axes.tick_params(length=0)
        _boxes(axes, spans(tasks), spans(adapters))
        bar = figure.colorbar(image, ax=list(grid[0]), location="right", shrink=0.6, pad=0.01)
        bar.ax.tick_params(labelsize=FONT)
        bar.set_label("mean score of the prompts", fontsize=FONT)
        if panels > 1:
            _candidates(grid[0, 1], result["candidates"])
        figure.suptitle(TITLES[name], fontsize=FONT + 3)
    return figure


def _boxes(axes: Any, down: Mapping[str, tuple[int, int]], across: Mapping[str, tuple[int, int]]) -> None:
    """A box around each cluster's tasks and adapters, with its name; none where all are in one."""
    from matplotlib.patches import Rectangle

    if len(down) < 2:
        return
    for cluster, (top, high) in down.items():
        if cluster in across:
            left, wide = across[cluster]
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), wide, high, fill=False, edgecolor=BOX, linewidth=1.6))
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
            _name(axes.set_xticks, names, rotation=90)
            _name(axes.set_yticks, names)
            axes.tick_params(length=0)
            axes.set_title(title, fontsize=FONT + 1.5)
            figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=FONT)
            axes.set_xlabel("adapter whose output it is" if name == "reach" else "adapter")
            axes.set_ylabel("adapter whose range it is" if name == "reach" else "adapter")
    return figure


def activation(found: Activation, sites: Sequence[str], method: str) -> Any:
    """Which ROCs each token used: adapters x tokens above, ROCs x tokens below, how often each ROC beside it.

    Args:
        found: from `activation.record`.
        sites: sum over these.
        method: its name, for the title.
    """
    # (token, adapter), (token, roc)
    counts, used = found.counts(sites).double().numpy(), found.used_at(sites).double().numpy()
    tokens, rocs = used.shape
    cell = min(CELL, 14 / max(rocs, 1), 30 / max(tokens, 1))
    width, high = max(3.0, cell * tokens), max(1.0, cell * rocs)
    top = max(0.35, CELL * len(found.names))
    with drawing() as figure_class:
        figure = figure_class(figsize=(width + 3.6, high + top + 2.0), layout="constrained")
        grid = figure.subplots(2, 2, height_ratios=[top, high], width_ratios=[width, 1.0])
        above, below, side = grid[0, 0], grid[1, 0], grid[1, 1]
        above.imshow(counts.T, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=counts.max() or 1.0)
        _bars(grid[0, 1], counts.mean(0), above, "mean number", "{:.1f}")
        _name(above.set_yticks, found.names)
        above.set_title(
            f"how many ROCs a token used of each adapter, {_where(sites)} (white 0, darkest {counts.max():.1f})",
            loc="left",
        )
        marks = below.imshow(
            used.T, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=used.max() or 1.0
        )
        _owners(below, found)
        below.set_title("each ROC of each adapter", loc="left")
        figure.colorbar(
            marks,
            ax=below,
            location="left",
            pad=0.01,
            aspect=30,
            label="share of the sites" if len(sites) > 1 else "used",
        )
        _tokens(below, found)
        above.set_xticks([])
        for axes in (above, below):
            axes.axvline(found.num_prompt - 0.5, color=INK, linewidth=1, linestyle="--")
            axes.tick_params(length=0)
        _bars(side, 100 * used.mean(0), below, "how often (%)", "{:.0f}" if rocs <= 60 else "")
        figure.suptitle(f"ROCs activated by {method} (prompt left of the dashed line, answer right)", fontsize=10)
    return figure


def _bars(axes: Any, values: Floats, beside: Any, label: str, form: str) -> None:
    """Bars for the rows of the map beside them."""
    axes.barh(range(len(values)), values, height=0.8, color="#9dbfdd")
    axes.set(ylim=beside.get_ylim(), xlim=(0, 1.05 * max(float(values.max()), 1e-9)), xticks=[])
    for at, value in enumerate(values):
        axes.text(0, at, " " + form.format(value), va="center", fontsize=FONT)
    axes.tick_params(labelleft=False, length=0)
    axes.set_xlabel(label, fontsize=FONT + 1)


def activation_layers(found: Activation, method: str) -> Any:
    """How often each ROC was active at each site: ROCs x sites."""
    sites = list(found.used)
    shares = np.stack([found.used_at([site]).numpy().mean(0) for site in sites], axis=1)  # (roc, site)
    rocs = len(shares)
    cell = min(CELL, 14 / max(rocs, 1))
    with drawing() as figure_class:
        figure = figure_class(
            figsize=(max(3.0, CELL * len(sites)) + 2.4, max(1.0, cell * rocs) + 1.5), layout="constrained"
        )
        axes = figure.subplots()
        image = axes.imshow(100 * shares, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=100)
        _name(axes.set_xticks, [short_site(site) for site in sites], rotation=90)
        _owners(axes, found)
        axes.tick_params(length=0)
        axes.set_xlabel("site (layer and module)")
        axes.set_ylabel("ROCs of each adapter")
        figure.colorbar(image, ax=axes, label="% of tokens that used the ROC", pad=0.01)
        axes.set_title(f"How often {method} activated each ROC, site by site", loc="left")
    return figure


def _owners(axes: Any, found: Activation) -> None:
    """The adapters' names beside the rows of their ROCs, and lines between adapters."""
    owners = found.owners.tolist()
    present = sorted(set(owners))
    starts = [owners.index(i) for i in present]
    middles = [start + (owners.count(i) - 1) / 2 for start, i in zip(starts, present, strict=True)]
    axes.set_yticks(middles, [shown(found.names[i]) for i in present], fontsize=FONT)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=GREY, linewidth=0.7)


def _where(sites: Sequence[str]) -> str:
    return shown(sites[0], 60) if len(sites) == 1 else f"mean of {len(sites)} sites"


def _tokens(axes: Any, found: Activation) -> None:
    step = max(1, len(found.tokens) // 220)
    places = range(0, len(found.tokens), step)
    labels = [visible(found.tokens[i]) for i in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=FONT)
    axes.set_xlabel("token")


def visible(token: str) -> str:
    """A token as a label: blanks and line ends can be seen."""
    return shown(token.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").strip() or "\N{MIDDLE DOT}", 14)


def _name(ticks: Any, names: Sequence[str], **look: Any) -> None:
    ticks(range(len(names)), [shown(name) for name in names], fontsize=FONT, **look)


def weights(found: Mapping[str, Any], most: int = 12) -> Any:
    """How adapters are weighed, layer by layer, a panel for each task; the task's own adapter in a box.

    Args:
        found: "sites" and "tasks", task -> {"adapters", "weights" (site, adapter)}.
        most: adapters of a panel, by their mean weight.
    """
    from matplotlib.patches import Rectangle

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
            image = axes.imshow(values[order], aspect="auto", interpolation="nearest", vmin=0, vmax=largest)
            _name(axes.set_yticks, names)
            axes.set_title(f"prompts of {shown(task)}", fontsize=FONT + 2, loc="left")
            axes.tick_params(length=0)
            if task in names:
                corner = (-0.5, names.index(task) - 0.5)
                axes.add_patch(Rectangle(corner, len(layers), 1, fill=False, edgecolor=BOX, linewidth=1.6))
        _name(panels[-1].set_xticks, layers, rotation=90)
        bar = figure.colorbar(image, ax=list(panels), location="right", shrink=0.6, pad=0.01)
        bar.ax.tick_params(labelsize=FONT)
        bar.set_label("mean weight of a token", fontsize=FONT)
    return figure
