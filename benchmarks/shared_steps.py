"""Tables of README.md on requests that share the model's steps: the engine against the one before, and a server."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lines import Line

from hilora.evaluate.tables import markdown_table

ABOUT = {
    "desk": "in process, all at once",
    "http": "HTTP, whole answers",
    "stream": "HTTP, streams",
    "base": "HTTP, streams, base model alone",
    "poisson": "HTTP, streams, arriving at random",
}


def ratio(values: Sequence[float]) -> str:
    """Median and quartiles, or the range of a few."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def checkouts_table(lines: Sequence[Line]) -> str:
    """Speed of the later of two checkouts over the earlier, round by round, by the size of the batch."""
    found: dict[tuple[int, str], dict[str, list[Line]]] = {}
    batch = 0
    for line in lines:
        batch = line.get("batch", batch)
        for part in ("prefill", "whole", "mixed"):
            if part in line:
                group = found.setdefault((batch, part), {"before": [], "after": []})
                group[line["checkout"]].append(line[part])
    rows = []
    for (batch, part), group in sorted(found.items(), key=lambda each: each[0][0]):
        pairs = list(zip(group["before"], group["after"], strict=True))
        told = (ratio([before[clock] / after[clock] for before, after in pairs]) for clock in ("wall", "processor"))
        rows.append((str(batch), part, str(len(pairs)), *told))
    return markdown_table(["batch", "part", "rounds", "by the clock", "by processor seconds"], rows)


def same_text(lines: Sequence[Line]) -> str:
    """How many answers are the same together and alone."""
    answers = [line for line in lines if "same" in line]
    gaps = [line["gap"] for line in answers if not line["same"]]
    told = f"Of {len(answers)} answers in fp32, {len(answers) - len(gaps)} are the same together and alone"
    return (
        f"{told}; at the first token that differs, logits are {max(gaps):.1g} apart at most." if gaps else f"{told}."
    )


def serve_table(lines: Sequence[Line]) -> str:
    """Every way and number of clients; rounds together."""
    found: dict[tuple[str, object], list[Line]] = {}
    for line in lines:
        if "way" in line:
            key = f"{line['rate']} of it" if line["way"] == "poisson" else line["clients"]
            found.setdefault((line["way"], key), []).append(line)
    rows = []
    order = list(ABOUT)
    for (way, key), group in sorted(
        found.items(), key=lambda each: (order.index(each[0][0]), float(str(each[0][1]).split()[0]))
    ):
        first = [line["first_s"]["p50"] for line in group if "first_s" in line]
        token = [line["token_ms"]["p50"] for line in group if line.get("token_ms")]
        shares = [line["client_share"] for line in group if "client_share" in line]
        rows.append(
            (
                ABOUT[way],
                str(key),
                ratio([line["of_offline"] for line in group]),
                f"{statistics.median(first):.2f}" if first else "-",
                f"{statistics.median(token):.0f}" if token else "-",
                f"{100 * statistics.median(shares):.0f} %" if shares else "-",
            )
        )
    heading = [
        "way",
        "clients",
        "of an offline batch",
        "first token, s",
        "a token more, ms",
        "clients' share of the cores",
    ]
    return markdown_table(heading, rows)
