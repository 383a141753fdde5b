"""RAMoLE's Table I and Fig. 6 and 7a from committed rows: results.md and fig7a.svg.

python reproduce/ramole/tables.py
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from charts import chart
from compared import against_table, finished
from experiments import section, stand_on, tables_main
from rounding import note
from stored import runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import by_method, markdown_table

PAPER = {  # Table I, Llama-2-7b: perfect selection, then IID and OOD of selection, fusion, mixture; AdapterSoup
    "translation": (13.1, 12.8, 12.0, 12.2, 12.3, 12.8, 12.2, 1.4),
    "commonsense": (62.5, 55.5, 46.0, 51.0, 48.0, 61.5, 50.0, 46.0),
    "sentiment": (90.0, 89.5, 89.0, 79.0, 78.5, 89.5, 90.5, 73.5),
    "reading comp": (67.3, 51.7, 40.3, 47.3, 45.0, 51.3, 47.3, 40.7),
    "closed_book QA": (45.0, 40.0, 43.0, 41.0, 37.5, 45.0, 48.5, 31.5),
    "coreference": (52.0, 50.0, 46.0, 47.0, 53.0, 63.0, 49.0, 43.0),
    "read.comp.w:commonsense": (69.0, 69.0, 30.0, 35.0, 19.0, 46.0, 40.0, 14.0),
    "paraphrase": (65.5, 58.0, 45.5, 45.5, 44.0, 56.5, 45.5, 46.5),
    "nli": (72.3, 70.0, 60.6, 51.4, 53.8, 67.9, 64.3, 62.4),
}
COLUMNS = (
    ("oracle", "iid"),
    ("selection", "iid"),
    ("selection", "ood"),
    ("fusion", "iid"),
    ("fusion", "ood"),
    ("mixture", "iid"),
    ("mixture", "ood"),
    ("adapter-soup", "iid"),
)
TRAINED = {  # the same table: RAMoLE IID and OOD, MoE top 1, top 3, soft, SMEAR, LoraHub
    "translation": (12.8, 11.9, 9.5, 10.5, 10.7, 11.0, 8.5),
    "commonsense": (58.5, 55.0, 54.5, 52.0, 51.5, 50.0, 17.5),
    "sentiment": (90.5, 92.0, 70.0, 75.0, 74.5, 74.0, 0.5),
    "reading comp": (52.0, 47.7, 48.7, 47.7, 48.7, 45.7, 2.7),
    "closed_book QA": (46.0, 45.5, 40.5, 38.5, 40.0, 32.0, 1.0),
    "coreference": (61.0, 52.0, 61.0, 59.0, 57.0, 58.0, 1.0),
    "read.comp.w:commonsense": (64.0, 42.0, 31.0, 29.0, 29.0, 23.0, 3.0),
    "paraphrase": (57.0, 46.5, 42.0, 38.5, 36.0, 34.5, 1.0),
    "nli": (65.9, 66.2, 50.3, 49.6, 48.3, 50.8, 10.5),
}
TRAINED_COLUMNS = (
    ("ramole", "iid"),
    ("ramole", "ood"),
    ("moe-top1", "iid"),
    ("moe-top3", "iid"),
    ("moe-soft", "iid"),
    ("smear", "iid"),
    ("lorahub", "iid"),
)
OTHER_WAYS = "`router-all`: with all adapters at hand; `router-rate`: at five times the learning rate."
MORE = (*((m, s) for m in ("hilora", "hilora-gs", "hilora-plus") for s in ("iid", "ood")), ("base", "iid"))


Columns = Sequence[tuple[str, str]]


def mixed_table(
    found: dict[str, dict[str, Summary]],
    columns: Columns,
    paper: Mapping[str, Sequence[float]],
    more: Columns = (),
) -> str:
    """Cluster by cluster: the paper's number and ours in each of its columns, then methods that it does not have."""
    heading = ["cluster", *(f"{m} {s}: paper / ours" for m, s in columns), *(f"{m} {s}" for m, s in more)]
    rows = []
    for cluster in found["iid"]["oracle"].clusters:
        theirs = paper.get(cluster)
        cells = [cluster]
        for i, (method, setting) in enumerate(columns):
            printed = f"{theirs[i]:.1f}" if theirs else "-"
            cells.append(f"{printed} / {found[setting][method].clusters[cluster]:.1f}")
        cells += [f"{found[setting][method].clusters[cluster]:.1f}" for method, setting in more]
        rows.append(cells)
    means = [f"{np.mean(list(found[s][m].clusters.values())):.1f}" for m, s in (*columns, *more)]
    rows.append(["mean of clusters", *means])
    return markdown_table(heading, rows)


def number_figure(results: Results, out: Path) -> str:
    """Average by number of retrieved adapters (Fig. 7a)."""
    rows, basis = [], []
    with chart(out, 6, 3.4) as axes:
        for setting, style in (("iid", "-"), ("ood", "--")):
            summaries = summarise(results, setting, reference="mixture:k=3")
            basis.append(f"{setting}: {stand_on(summaries)}")
            found = {s.method: s.average for s in summaries}
            for method, colour in (("mixture", "#4c72b0"), ("fusion", "#dd8452")):
                label = f"{method}:k="
                points = {int(name.removeprefix(label)): a for name, a in found.items() if name.startswith(label)}
                spread = [[p.value - p.low for p in points.values()], [p.high - p.value for p in points.values()]]
                look = {"ls": style, "color": colour, "marker": "o", "capsize": 3, "label": f"{method}, {setting}"}
                axes.errorbar(list(points), [p.value for p in points.values()], yerr=spread, **look)
                rows += [
                    [look["label"], str(k), f"{p.value:.1f} ({p.low:.1f} to {p.high:.1f})"] for k, p in points.items()
                ]
        axes.set_xlabel("retrieved adapters")
        axes.set_ylabel("average score")
        axes.legend()
    return "\n\n".join([" ".join(basis), markdown_table(("curve", "k", "average"), rows)])


def sections(rows: Path, out: Path) -> list[str]:
    """The page's sections, as far as there are rows; figures are written beside it."""
    text = ["# RAMoLE's experiments, measured here\n\nMade by `python reproduce/ramole/tables.py`.\n"]
    text += [f"{note('../hilora/batches.md')}\n"]
    if runs_in(rows, "mixed"):
        results = finished(Results(runs_in(rows, "mixed", "trained", "rivals")))
        found = {setting: {s.method: s for s in summarise(results, setting)} for setting in results.settings}
        text += [section("Table I: training-free columns", mixed_table(found, COLUMNS, PAPER, MORE))]
        if all(method in found[setting] for method, setting in TRAINED_COLUMNS):
            text += [section("Table I: trained columns", mixed_table(found, TRAINED_COLUMNS, TRAINED))]
        for setting, of in found.items():
            all_ = list(of.values())
            title = f"All tasks, {setting.upper()}"
            text += [section(title, stand_on(all_), markdown_table(*by_method(all_)))]
            text += [section(f"{title}: against hilora-plus", against_table(all_, "hilora-plus"))]
    if lorahub := runs_in(rows, "lorahub"):
        found = summarise(Results(lorahub), "iid", reference="base")
        title = "LoRAHub, an adapter made for each task (`oracle` over those; the task's own is never a part)"
        text += [section(title, stand_on(found), markdown_table(*by_method(found)))]
    if dropout := runs_in(rows, "dropout"):
        results = Results(dropout)
        for setting in results.settings:
            found = summarise(results, setting, reference="ramole")
            title = f"Fig. 6: RouterLoRA trained in other ways, {setting.upper()}"
            text += [section(title, OTHER_WAYS, stand_on(found), markdown_table(*by_method(found)))]
    if number := runs_in(rows, "number"):
        table = number_figure(Results(number), out / "fig7a.svg")
        text += [section("Fig. 7a: number of retrieved adapters", "![Fig. 7a](fig7a.svg)", table)]
    return text


def main() -> None:
    tables_main(__doc__, "reproduce/ramole", sections)


if __name__ == "__main__":
    main()
