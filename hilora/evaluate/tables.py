"""Summaries as tables, on a screen or in Markdown: (heading, rows of texts), best values in bold.

The oracle is a reference, not a contestant: it is never the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hilora.evaluate.report import Summary

if TYPE_CHECKING:
    from hilora.evaluate.fitted import Fitted

Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]
REFERENCES = ("oracle",)


def by_method(summaries: Sequence[Summary]) -> Cells:
    """One line per method: average with interval, difference to the reference method, harm."""
    heading = ("method", "average", "95 %", "difference", "95 %", "p", "% of oracle", "gap closed", "harm %")
    best = max((s.average.value for s in summaries if s.method not in REFERENCES), default=0.0)
    rows: list[tuple[str, ...]] = []
    for s in summaries:
        d = s.difference
        rows.append(
            (
                s.method,
                _mark(s.average.value, s.method not in REFERENCES and s.average.value == best),
                f"{s.average.low:.1f} to {s.average.high:.1f}",
                "-" if d is None else f"{d.value:+.1f}",
                "-" if d is None else f"{d.low:+.1f} to {d.high:+.1f}",
                "-" if d is None else f"{d.p:.3f}",
                "-" if s.of_oracle is None else f"{s.of_oracle:.1f}",
                "-" if s.gap is None else f"{s.gap:.2f}",
                "-" if s.harm is None else f"{s.harm:.1f}",
            )
        )
    return heading, rows


def by_cost(summaries: Sequence[Summary]) -> Cells:
    """One line per method: what a token uses of it, and the time."""
    heading = ("method", "adapters", "ROCs", "tokens/s", "rows", "prompts")
    return heading, [
        (
            s.method,
            f"{s.adapters:.1f}",
            f"{s.rocs:.1f}",
            f"{s.tokens_per_s:.0f}",
            str(s.num_rows),
            str(s.num_prompts),
        )
        for s in summaries
    ]


def by_cluster(summaries: Sequence[Summary]) -> Cells:
    """One line per cluster, one column per method."""
    return _with_mean(summaries, "cluster", {s.method: s.clusters for s in summaries})


def by_task(summaries: Sequence[Summary]) -> Cells:
    """One line per task, one column per method."""
    return _with_mean(summaries, "task", {s.method: s.tasks for s in summaries})


def grid(what: str, scores: Mapping[str, Mapping[str, float]]) -> Cells:
    """One line per name, one column per method, from method -> name -> score."""
    rows: list[tuple[str, ...]] = []
    for name in next(iter(scores.values())):
        values = {method: of[name] for method, of in scores.items()}
        best = max((v for method, v in values.items() if method not in REFERENCES), default=0.0)
        rows.append((name, *(_mark(v, m not in REFERENCES and v == best) for m, v in values.items())))
    return (what, *scores), rows


TABLES: dict[str, Callable[[Sequence[Summary]], Cells]] = {
    "method": by_method,
    "cost": by_cost,
    "cluster": by_cluster,
    "task": by_task,
}


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def rich_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Fitted:
    """The same for a screen."""
    from rich.markup import escape

    from hilora.evaluate.fitted import Fitted

    table = Fitted(header_style="dim")
    for i, name in enumerate(heading):
        table.add_column(escape(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"[bold]{escape(c.strip('*'))}[/]" if c.startswith("**") else escape(c) for c in row))
    return table


def _with_mean(summaries: Sequence[Summary], what: str, scores: Mapping[str, Mapping[str, float]]) -> Cells:
    names = sorted(next(iter(scores.values())))
    heading, rows = grid(what, {method: {name: of[name] for name in names} for method, of in scores.items()})
    means = [sum(of.values()) / len(of) for of in scores.values()]
    return heading, [*rows, ("mean", *(f"{mean:.1f}" for mean in means))]


def _mark(value: float, best: bool) -> str:
    return f"**{value:.1f}**" if best else f"{value:.1f}"


def routing_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What `routing.run_routing` found as a table in percent; the first row is the heading."""
    rows: list[tuple[str, ...]] = []
    for method, found in result["methods"].items():
        tops = [name for name in found if name.startswith("top")]
        first, *others = (f"{100 * found[top]:.1f}" for top in tops)
        low, high = (f"{100 * end:.1f}" for end in found["intervals"][tops[0]])
        rows = rows or [("method", "top 1 (95 % interval)", *(f"top {top[3:]}" for top in tops[1:]), "rows")]
        rows.append((method, f"{first} ({low} to {high})", *others, str(found["n"])))
    return rows
