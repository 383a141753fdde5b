"""How figures look and are saved.

White background and dark ink, so that a figure reads the same on a light and on a dark page. Colours are those of
Okabe and Ito without yellow, which colour-blind people tell apart; where there are more things than colours, markers
tell them apart as well. The same numbers give the same bytes: no dates, fixed ids.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilora.base.outputs import check_folder
from hilora.errors import HiloraError, InputError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b5b5b", "#7b3f9e")
MARKERS = "os^DvPX*"
GREY, INK = "#8a8a8a", "#222222"
SEEN, UNSEEN = COLOURS[0], COLOURS[1]
IDS: dict[str, Any] = {"svg.hashsalt": "hilora"}
"""Ids within an SVG are drawn by this, not by chance."""
STYLE: dict[str, Any] = {
    **IDS,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names and tokens may hold dollar signs
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
FORMATS = ("png", "svg")
DPI = 130
LONGEST = 32
"""Characters of a name that are shown."""


@contextmanager
def drawing(look: Mapping[str, Any] = STYLE) -> Iterator[Any]:
    """matplotlib's `Figure` class, in our style or another, whatever the user's settings are.

    Raises:
        HiloraError: matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise HiloraError("Figures need matplotlib. Run: pip install 'hilora[reproduce]'") from error
    with style.context(["default", dict(look)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a token may be in any script
        yield Figure


def need_matplotlib() -> None:
    """Refuse to begin what cannot be drawn.

    Raises:
        HiloraError: matplotlib is not installed.
    """
    with drawing():
        pass


def check_drawing(folder: Path) -> None:
    """Refuse to begin what cannot be drawn, or not be kept in a folder.

    Raises:
        HiloraError: matplotlib is not installed, or the folder cannot be written.
    """
    check_folder(folder)
    need_matplotlib()


def save(figure: Any, path: Path, formats: Sequence[str] = FORMATS, dpi: int = DPI) -> list[Path]:
    """Write a figure as PATH.png and PATH.svg; returns the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{kind}") for kind in formats]
    with drawing():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once; each format would do it again
        box = figure.get_tightbbox().padded(0.1)
        for file in files:
            figure.savefig(file, dpi=dpi, metadata=metadata_of(file), bbox_inches=box)
    return files


def metadata_of(file: Path) -> dict[str, str | None]:
    """What a PNG or SVG says of itself: neither when it was made nor by which version."""
    return {"Software": None} if file.suffix == ".png" else {"Date": None, "Creator": "hilora"}


def shown(text: str, longest: int = LONGEST) -> str:
    """A text as a label: one line of printable characters, not too long."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def looks(names: Sequence[str]) -> list[dict[str, str]]:
    """A colour and a marker for each name, no two alike.

    Raises:
        InputError: more names than there are pairs.
    """
    most = len(COLOURS) * len(MARKERS)
    if len(names) > most:
        raise InputError(
            f"{len(names)} names cannot be told apart in one figure, at most {most} can. "
            f"Keep to some of them, with --adapter for example."
        )
    count = len(COLOURS)
    return [{"color": COLOURS[i % count], "marker": MARKERS[(i + i // count) % count]} for i in range(len(names))]


def short_site(site: str) -> str:
    """A site's layer and module: "3 q_proj"."""
    numbers = [piece for piece in site.split(".") if piece.isdigit()]
    return shown(" ".join([*numbers[:1], site.rsplit(".", 1)[-1]]))
