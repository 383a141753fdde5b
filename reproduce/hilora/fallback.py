"""What it costs to leave prompts to the base model that no adapter seems to know: average against harm.

    python reproduce/hilora/fallback.py --data DATA     # fallback.json and fallback.md; two minutes

DATA holds flan_mini/val. The rows of the tables (rows/within, cross, iid; second halves of the files) are answered
already by hilora-plus and by base. Here hilora-plus's answer is replaced by base's where the prompt's lead is below a
threshold: a quantile of the leads of held-out samples, so that 2 % is where `fallback` begins. Without --data
the page is made again from the numbers.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main
from rounding import note
from stored import stored

from hilora import Pool, get_method
from hilora.base.embed import Embedder, Remembering
from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.rows import choose_rows, cluster_of, load_rows
from hilora.evaluate.run import route_cases
from hilora.evaluate.settings import make_cases
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import entry_lines
from hilora.planner import Planner
from hilora.route.experts import sum_scores, witness_scores
from hilora.route.novelty import leads

HERE = Path(__file__).parent
POOL = Path("pools/flan-mini")
ROWS = HERE / "rows"
SETTINGS = {"iid": 13, "within": 13, "cross": 50}
"""Setting -> rows per task, as in run.py."""
HALVES = 4
SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of held-out samples below the thresholds."""


def thresholds(pool: Pool) -> dict[str, float]:
    """Share of held-out samples -> the lead below which they are."""
    assert pool.calibration is not None
    _, scores = witness_scores(pool.samples())
    held = leads(sum_scores(scores, pool.calibration.weights))
    return {str(share): round(float(held.quantile(share)), 3) for share in SHARES}


def leads_of(setting: str, planner: Planner, data: Path) -> dict[tuple[str, str], float]:
    """(split, row id) -> the lead of its best adapter, as in the table's run."""
    rows = load_rows(data / "flan_mini" / "val")
    chosen = choose_rows(rows, part="second", per_task=SETTINGS[setting])
    cases = make_cases(setting, chosen, planner.pool.names, clusters=cluster_of(rows), halves=HALVES)
    route = route_cases(planner, cases)[0].route
    assert route is not None
    assert route.leads is not None
    return {(case.split, case.row.id): lead for case, lead in zip(cases, route.leads.tolist(), strict=True)}


def policies(setting: str, lead: dict[tuple[str, str], float], cuts: dict[str, float]) -> dict[str, Any]:
    """Policy -> share of rows left to base, average, its difference to hilora-plus with 95 %, harm."""
    results = Results([stored(ROWS / f"{setting}.jsonl")])
    held = {method: results.rows[setting, method] for method in ("base", "oracle", "hilora", "hilora-plus")}
    for key in [key for key in results.rows if key[0] == setting]:
        del results.rows[key]
    mixed = dict(held)
    for share, cut in cuts.items():
        mixed[share] = {key: held["base" if lead[key] < cut else "hilora-plus"][key] for key in held["hilora-plus"]}
    results.rows |= {(setting, name): rows for name, rows in mixed.items()}
    found = {}
    for summary in summarise(results, setting, reference="hilora-plus"):
        left = {"base": 1.0}.get(summary.method, 0.0)
        if summary.method in cuts:
            left = sum(value < cuts[summary.method] for value in lead.values()) / len(lead)
        found[summary.method] = _numbers(summary, left)
    return found


def _numbers(summary: Summary, left: float) -> list[float | None]:
    values = [100 * left, summary.average.value, summary.harm]
    if summary.difference is not None:
        values += [summary.difference.value, summary.difference.low, summary.difference.high]
    return [None if value is None else round(value, 2) for value in values]


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All numbers."""
    pool = Pool.open(POOL)
    planner = Planner(pool, get_method("hilora-plus", fallback="none"), Remembering(Embedder(embedder_name)))
    cuts = thresholds(pool)
    header = setup("reproduce/hilora/fallback.py", embedder=embedder_name, thresholds=cuts)
    return {"setup": header} | {s: policies(s, leads_of(s, planner, data), cuts) for s in SETTINGS}


def report(result: dict[str, Any]) -> str:
    """The page."""
    text = """# What it costs to leave strange prompts to the base model

Made by `python reproduce/hilora/fallback.py --data DATA`; numbers in `fallback.json`. hilora-plus (broad fallback),
its answers replaced by base's where the prompt's lead is below that of a share of held-out samples. Harm: of the
rows that base answers rightly by exact match, the share that the method does not.
"""
    text += f"{note('batches.md')}\n"
    for setting in SETTINGS:
        rows = []
        for name, (left, average, harm, *difference) in result[setting].items():
            label = f"base below the {100 * float(name):g} % quantile" if name[0].isdigit() else name
            told = f"{difference[0]:+.1f} ({difference[1]:+.1f} to {difference[2]:+.1f})" if difference else "-"
            rows.append((label, f"{left:.1f}", f"{average:.1f}", told, f"{harm:.1f}"))
        heading = ["served by", "% left to base", "average", "difference", "harm %"]
        text += f"\n## {setting}\n\n{markdown_table(heading, rows)}\n"
    return text


def main() -> None:
    numbers_main(__doc__, HERE / "fallback", measure, report, partial(entry_lines, depth=2))


if __name__ == "__main__":
    main()
