"""RAMoLE's Table I (training-free columns) and Fig. 7a from committed rows: results.md and fig7a.svg.

python reproduce/ramole/tables.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import section, tables_main

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import by_cost, by_method, markdown_table

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
MORE = (("hilora", "iid"), ("hilora", "ood"), ("hilora-gs", "iid"), ("hilora-gs", "ood"), ("base", "iid"))


def mixed_table(found: dict[str, dict[str, Summary]]) -> str:
    """Cluster by cluster: the paper's number and ours in each of its columns, then methods that it does not have."""
    heading = ["cluster", *(f"{m} {s}: paper / ours" for m, s in COLUMNS), *(f"{m} {s}" for m, s in MORE)]
    rows = []
    for cluster in found["iid"]["oracle"].clusters:
        theirs = PAPER.get(cluster)
        cells = [cluster]
        for i, (method, setting) in enumerate(COLUMNS):
            paper = f"{theirs[i]:.1f}" if theirs else "-"
            cells.append(f"{paper} / {found[setting][method].clusters[cluster]:.1f}")
        cells += [f"{found[setting][method].clusters[cluster]:.1f}" for method, setting in MORE]
        rows.append(cells)
    means = [f"{np.mean(list(found[s][m].clusters.values())):.1f}" for m, s in (*COLUMNS, *MORE)]
    rows.append(["mean of clusters", *means])
    return markdown_table(heading, rows)


def number_figure(results: Results, out: Path) -> str:
    """Average by number of retrieved adapters (Fig. 7a)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    rows = []
    for setting, style in (("iid", "-"), ("ood", "--")):
        found = {s.method: s.average for s in summarise(results, setting, reference="mixture:k=3")}
        for method, colour in (("mixture", "#4c72b0"), ("fusion", "#dd8452")):
            points = {int(label.split("=")[1]): a for label, a in found.items() if label.startswith(f"{method}:k=")}
            spread = [[p.value - p.low for p in points.values()], [p.high - p.value for p in points.values()]]
            values = [p.value for p in points.values()]
            name = f"{method}, {setting}"
            axes.errorbar(
                list(points), values, yerr=spread, ls=style, color=colour, marker="o", capsize=3, label=name
            )
            rows += [[name, str(k), f"{p.value:.1f} ({p.low:.1f} to {p.high:.1f})"] for k, p in points.items()]
    axes.set_xlabel("retrieved adapters")
    axes.set_ylabel("average score")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)
    return markdown_table(("curve", "k", "average"), rows)


def sections(rows: Path, out: Path) -> list[str]:
    """The page's sections, as far as there are rows; figures are written beside it."""
    text = ["# RAMoLE's training-free experiments, measured here\n\nMade by `python reproduce/ramole/tables.py`.\n"]
    if (rows / "mixed.jsonl").exists():
        results = Results([rows / "mixed.jsonl"])
        found = {setting: {s.method: s for s in summarise(results, setting)} for setting in results.settings}
        text += [section("Table I: training-free columns", mixed_table(found))]
        for setting, of in found.items():
            cells = [markdown_table(*table(list(of.values()))) for table in (by_method, by_cost)]
            text += [section(f"All tasks, {setting.upper()}", *cells)]
    if (rows / "number.jsonl").exists():
        table = number_figure(Results([rows / "number.jsonl"]), out / "fig7a.svg")
        text += [section("Fig. 7a: number of retrieved adapters", "![Fig. 7a](fig7a.svg)", table)]
    return text


def main() -> None:
    tables_main(__doc__, "reproduce/ramole", sections)


if __name__ == "__main__":
    main()
