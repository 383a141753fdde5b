"""Charts of experiments in matplotlib's own look: the same bytes for the same numbers, whatever the user has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilora.analyse.look import IDS, drawing, metadata_of


@contextmanager
def chart(out: Path, width: float, height: float) -> Iterator[Any]:
    """Axes to draw on; the chart, so many inches large, is written when all is drawn."""
    with drawing(IDS) as figure_class:
        figure = figure_class(figsize=(width, height))
        yield figure.subplots()
        figure.tight_layout()
        figure.savefig(out, metadata=metadata_of(out))
