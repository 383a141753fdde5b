"""What a training's log says, a JSON line a step, and the minutes that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from hilora.jsonl import read_lines


def logged(log: Path, name: str) -> list[float]:
    """A number of every step, e.g. its "loss"."""
    return [float(line[name]) for line in read_lines(log)]


def minutes_of(log: Path, sizes: Iterable[int], least: float) -> float:
    """Minutes of training, whatever interrupted it.

    Args:
        log: with the speed of every step, in what `sizes` counts, by the second.
        sizes: of each step's batch.
        least: steps that were slower than this share of the usual speed count as of that speed: their process was
            stopped for a while.
    """
    speeds = logged(log, "tokens_per_s")
    usual = statistics.median(speeds)
    steps = zip(sizes, speeds, strict=False)
    return round(sum(size / (usual if speed < least * usual else speed) for size, speed in steps) / 60, 1)
