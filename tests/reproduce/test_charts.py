"""Laws of charts: drawn twice they are the same bytes, whatever the user's settings are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl


def draw(scripts: Any, out: Path) -> bytes:
    with scripts.load("reproduce/charts.py").chart(out, 4, 3) as axes:
        axes.errorbar([1, 2], [3, 4], yerr=[[1, 1], [1, 1]], marker="o", capsize=3, label="$a_b$")
        axes.legend()
    return out.read_bytes()


def test_a_chart_drawn_twice_is_the_same_bytes(scripts: Any, tmp_path: Path) -> None:
    first = draw(scripts, tmp_path / "a.svg")
    with mpl.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "black"}):
        assert draw(scripts, tmp_path / "b.svg") == first
    assert b"<dc:date>" not in first
