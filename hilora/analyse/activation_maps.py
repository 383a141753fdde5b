"""Maps of an answer: which ROCs each token used, and how often each was used at each site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hilora.analyse.activation import Activation
from hilora.analyse.heatmaps import CELL, CELLS, FONT, name_ticks
from hilora.analyse.look import GREY, INK, drawing, short_site, shown
from hilora.evaluate.metrics import Floats

USED: dict[str, Any] = CELLS | {"cmap": "Blues", "vmin": 0}
"""Cells of how often something was used: white where never."""


def by_token(found: Activation, sites: Sequence[str], method: str) -> Any:
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
        above.imshow(counts.T, **USED, vmax=counts.max() or 1.0)
        _bars(grid[0, 1], counts.mean(0), above, "mean number", "{:.1f}")
        name_ticks(above.set_yticks, found.names)
        above.set_title(
            f"how many ROCs a token used of each adapter, {_where(sites)} (white 0, darkest {counts.max():.1f})",
            loc="left",
        )
        marks = below.imshow(used.T, **USED, vmax=used.max() or 1.0)
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


def by_site(found: Activation, method: str) -> Any:
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
        image = axes.imshow(100 * shares, **USED, vmax=100)
        name_ticks(axes.set_xticks, [short_site(site) for site in sites], rotation=90)
        _owners(axes, found)
        axes.tick_params(length=0)
        axes.set_xlabel("site (layer and module)")
        axes.set_ylabel("ROCs of each adapter")
        figure.colorbar(image, ax=axes, label="% of tokens that used the ROC", pad=0.01)
        axes.set_title(f"How often {method} activated each ROC, site by site", loc="left")
    return figure


def _bars(axes: Any, values: Floats, beside: Any, label: str, form: str) -> None:
    """Bars for the rows of the map beside them."""
    axes.barh(range(len(values)), values, height=0.8, color="#9dbfdd")
    axes.set(ylim=beside.get_ylim(), xlim=(0, 1.05 * max(float(values.max()), 1e-9)), xticks=[])
    for at, value in enumerate(values):
        axes.text(0, at, " " + form.format(value), va="center", fontsize=FONT)
    axes.tick_params(labelleft=False, length=0)
    axes.set_xlabel(label, fontsize=FONT + 1)


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
    """The tokens' texts below their columns; of very many, some."""
    step = max(1, len(found.tokens) // 220)
    places = range(0, len(found.tokens), step)
    labels = [visible(found.tokens[i]) for i in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=FONT)
    axes.set_xlabel("token")


def visible(token: str) -> str:
    """A token as a label: blanks and line ends can be seen."""
    return shown(token.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").strip() or "\N{MIDDLE DOT}", 14)
