"""The bench as bars: tokens a second of each contender, before and after the first new token."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora.analyse.look import COLOURS, GREY, drawing, need_matplotlib, save
from hilora.base.outputs import check_file
from hilora.bench.rounds import decode
from hilora.errors import InputError


def check_plot(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is timed.

    Raises:
        HiloraError: the file's name ends in neither .png nor .svg, it could not be written, or matplotlib is not
            installed.
    """
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"A plot is a .png or .svg file; got {path.name!r}.")
    check_file(path)
    need_matplotlib()


def draw(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw what `Bench.run` returned."""
    names = list(result["seconds"])
    tokens = result["tokens"]
    with drawing() as figure_of:
        figure = figure_of(figsize=(8, 0.36 * len(names) + 1.2), layout="constrained")
        for axes, part in zip(figure.subplots(1, 2, sharey=True), ("prompt", "new"), strict=True):
            medians, spread = [], []
            for name in names:
                times = result["seconds"][name]
                speeds = [tokens[part] / s for s in (times["prefill"] if part == "prompt" else decode(times))]
                medians.append(statistics.median(speeds))
                spread.append((medians[-1] - min(speeds), max(speeds) - medians[-1]))
            colours = [GREY if name.startswith("peft") else COLOURS[0] for name in names]
            axes.barh(names, medians, xerr=list(zip(*spread, strict=True)), color=colours, ecolor=COLOURS[1])
            axes.set_xlabel(f"{part} tokens per second, median and range")
            axes.invert_yaxis()
    return save(figure, path.with_suffix(""), [path.suffix[1:]])
