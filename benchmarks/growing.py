"""Tables of README.md on pools that grow: what an epoch's end costs, how soon an upload is routable."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lines import Line

from hilora.evaluate.tables import markdown_table

SHARES = {
    "top1": "right first, %",
    "coverage": "right in the set, %",
    "size": "adapters in a set",
    "new_top1": "of new adapters: right first, %",
    "new_coverage": "right in the set, %",
}


def middle(found: Line) -> str:
    """Median and range."""
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['most']:.3g})"


def ends_table(lines: Sequence[Line]) -> str:
    """Ends of epochs, each beside a fresh one; means over the draws."""
    rows = []
    for growth in dict.fromkeys(line["growth"] for line in lines):
        group = [line for line in lines if line["growth"] == growth]
        for when in ("ended", "fresh"):
            means = {name: statistics.mean(line[when][name] for line in group) for name in SHARES}
            told = [f"{value:.2f}" if name == "size" else f"{100 * value:.1f}" for name, value in means.items()]
            members = f"{group[0]['members']} of {group[0]['adapters']}" if when == "ended" else "all"
            rows.append((f"{growth:g}", members, *told))
    return markdown_table(["grown by", "learned from", *SHARES.values()], rows)


def grown_table(lines: Sequence[Line]) -> str:
    """From an upload that has been checked to its first route, by the size of the pool."""
    rows = []
    for line in lines:
        parts = [middle(line[part]) for part in ("add_s", "open_s", "grow_s", "route_s", "routable_s")]
        rows.append((line["method"], f"{line['adapters']:,}", *parts, f"{line['fit_s']:g}"))
    heading = ["method", "adapters", "add, s", "open, s", "grow, s", "route, s", "together, s", "cold statistics, s"]
    return markdown_table(heading, rows)


def uploads_table(lines: Sequence[Line]) -> str:
    """From the request to the first prompt that is routed to the adapter, over HTTP."""
    rows = []
    for line in lines:
        step = (middle(line["step_ms"]), middle(line["step_ratio"])) if "step_ms" in line else ("-", "-")
        who = "nobody else asks" if line["what"] == "idle" else f"{line['rows']} streams are read"
        rows.append((f"{line['adapters']:,}", who, middle(line["live_s"]), middle(line["routable_s"]), *step))
    heading = [
        "adapters",
        "meanwhile",
        "checked, s",
        "routed to, s",
        "a token meanwhile, ms",
        "of one before and after",
    ]
    return markdown_table(heading, rows)
