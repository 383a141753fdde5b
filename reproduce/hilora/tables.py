"""HiLoRA's tables and figures from committed rows: results.md, fig1.svg, fig6.svg, and what was seen in which half.

python reproduce/hilora/tables.py
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import bases
import paper
from charts import chart
from compared import against_table, clusters_table, dtypes, finished, lead_table, less, told, useful_tasks, verdict
from experiments import section, stand_on, tables_main
from rounding import note
from stored import joined, runs_in

from hilora.evaluate.report import Results, Summary, cluster_means, summarise
from hilora.evaluate.tables import REFERENCES, by_cost, by_method, by_task, grid, markdown_table
from hilora.evaluate.tasks import paper_cluster

Summaries = Sequence[Summary]
NEEDED = dict.fromkeys(("iid", "within", "cross", "nli"), "hilora-plus") | {"gamma": "hilora:gamma=1.0"}
"""Run -> the method without which it is not shown."""
CHOSEN = {
    "choose": "What hilora-plus is made of",
    "ablation": "Ablations",
    "rivals-choose": "What is open in the rivals",
}
"""Runs on first halves -> what they are about."""
FRESH = {
    ("confirm", "iid"): "Rows that nothing had used: own adapter there",
    ("confirm", "within"): "Rows that nothing had used: half of the adapters",
    ("strange", "mixed"): "Rows that nothing had used: tasks without an adapter",
}
"""Run and setting -> what it is about; generated once, after hilora-plus was frozen."""


def is_ready(results: Results, needed: str | None) -> bool:
    """Whether a run has come so far that there is something to show: to this method, in every setting."""
    return needed is None or all(needed in results.methods(setting) for setting in results.settings)


@cache
def whole(results: Results, setting: str) -> Summaries:
    """All rows of a setting, summed up once for all tables: the bootstraps take most of this script's time."""
    return summarise(results, setting)


def by_paper_cluster(results: Results, summaries: Summaries) -> dict[str, dict[str, float]]:
    """Method -> paper's cluster -> mean over its tasks."""
    clusters = {task: paper_cluster(cluster) for task, cluster in results.clusters.items()}
    return {s.method: cluster_means(s.tasks, clusters) for s in summaries}


def beside(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Sequence[float]]) -> str:
    """Paper's number, ours, and the gap, for hilora, mixture (the paper's Retriever) and the oracle."""
    heading = ["", *(f"{m}: {w}" for m in ("hilora", "mixture", "oracle") for w in ("paper", "ours", "gap"))]
    rows = []
    for name, values in theirs.items():
        cells = [name]
        for method in ("hilora", "mixture", "oracle"):
            value = values[paper.METHODS.index(method)]
            own = ours.get(method, {}).get(name)
            cells += [f"{value:.1f}", "not run" if own is None else f"{own:.1f}"]
            cells.append("" if own is None else f"{own - value:+.1f}")
        rows.append(cells)
    return markdown_table(heading, rows)


def halves(results: Results) -> dict[str, list[str]]:
    """Half -> the tasks whose adapters were in the pool."""
    found: dict[str, set[str]] = {}
    for (setting, _), rows in results.rows.items():
        for (split, row_id), row in rows.items():
            if setting == "within" and row["seen"]:
                found.setdefault(split, set()).add(row_id.split("/")[0])
    return {split: sorted(found[split]) for split in sorted(found)}


def cost_table(summaries: Summaries) -> str:
    """What a token uses of each method. Not its speed: the machine did other things, see benchmarks/."""
    heading, rows = by_cost(summaries)
    keep = [i for i, name in enumerate(heading) if name != "tokens/s"]
    return markdown_table([heading[i] for i in keep], [[row[i] for i in keep] for row in rows])


def setting_section(title: str, results: Results, setting: str, theirs: Mapping[str, Sequence[float]]) -> list[str]:
    summaries = whole(results, setting)
    clusters = by_paper_cluster(results, summaries)
    text = [
        section(title, stand_on(summaries), markdown_table(*by_method(summaries)), cost_table(summaries)),
        section(f"{title}: against hilora-plus", against_table(summaries, "hilora-plus")),
        section(f"{title}: by cluster", markdown_table(*grid("cluster", clusters))),
        section(
            f"{title}: hilora-plus by cluster",
            "The pool's own clusters. The best of the others is chosen on the same rows, by which it looks better "
            "than it is; of that many comparisons some are significant by chance.",
            clusters_table(summaries, results.clusters),
        ),
    ]
    if theirs:
        text.append(section(f"{title}: the paper's numbers and ours", beside(clusters, theirs)))
    per_task = f"<details><summary>Per task</summary>\n\n{markdown_table(*by_task(summaries))}\n\n</details>"
    return [*text, section(f"{title}: by task", per_task)]


def seen_section(results: Results, title: str) -> str:
    parts = []
    for seen in (True, False):
        part = summarise(results, "within", keep=lambda row, seen=seen: row["seen"] == seen)
        parts += [f"Tasks whose adapter is {'in the pool' if seen else 'not in the pool'}:"]
        parts += [stand_on(part), markdown_table(*by_method(part))]
    return section(title, *parts)


def useful_section(results: Results, setting: str, title: str) -> str:
    tasks = useful_tasks({s.method: s for s in whole(results, setting)})
    if not tasks:
        return section(title, "No task's adapter beats base and the constant answer significantly.")
    keep = lambda row: row["id"].split("/")[0] in tasks  # noqa: E731
    parts = [f"{len(tasks)} tasks whose adapter significantly beats base and the most frequent answer:"]
    parts += [", ".join(sorted(tasks)) + "."]
    for seen in (True, False, None):
        kept = lambda row, seen=seen: keep(row) and (seen is None or row["seen"] == seen)  # noqa: E731
        if any(kept(r) for rows in results.rows.values() for r in rows.values() if r["setting"] == setting):
            name = {True: "Seen", False: "Unseen", None: "All"}[seen]
            part = summarise(results, setting, keep=kept)
            parts += [f"{name}: {stand_on(part)}", markdown_table(*by_method(part))]
    return section(title, *parts)


def main_table(read: Mapping[str, Results]) -> str:
    """One line per method: its mean over tasks in each setting, and what a token uses of it; the README's table."""
    found = {setting: {s.method: s for s in whole(results, setting)} for setting, results in read.items()}
    names = {"iid": "own adapter in the pool", "within": "half of the tasks' adapters", "cross": "no related adapter"}
    best = {
        setting: max(s.average.value for s in of.values() if s.method not in REFERENCES)
        for setting, of in found.items()
    }
    rows = []
    for method in next(iter(found.values())):
        cells = [method]
        for setting, of in found.items():
            if method not in of:
                cells.append("not run")
                continue
            average = of[method].average
            value = f"{average.value:.1f}"
            value = f"**{value}**" if average.value == best[setting] else value
            cells.append(f"{value} ({average.low:.1f} to {average.high:.1f})")
        cost = next(iter(found.values()))[method]
        rows.append((*cells, f"{cost.adapters:.1f}", f"{cost.rocs:.1f}"))
    return markdown_table(("method", *(names[setting] for setting in found), "adapters", "ROCs"), rows)


def bars(summaries: Summaries, title: str, out: Path) -> None:
    """Average of each method with its interval (the paper's Fig. 1)."""
    ordered = sorted(summaries, key=lambda s: s.average.value)
    colours = ["#c44e52" if s.method.startswith("hilora") else "#8c8c8c" for s in ordered]
    colours = ["#55a868" if s.method == "oracle" else c for s, c in zip(ordered, colours, strict=True)]
    errors = np.array([[s.average.value - s.average.low, s.average.high - s.average.value] for s in ordered]).T
    with chart(out, 7, 0.32 * len(ordered) + 1) as axes:
        axes.barh([s.method for s in ordered], [s.average.value for s in ordered], xerr=errors, color=colours)
        axes.set_xlabel("average score, with 95 % interval")
        axes.set_title(title)


def gamma_figure(results: Results, out: Path) -> str:
    """Average by gamma in both settings (the paper's Fig. 6)."""
    rows: dict[int, list[str]] = {g: [f"{g} %"] for g in paper.FIGURE_6}
    basis = []
    with chart(out, 6, 3.4) as axes:
        for column, setting in enumerate(("within", "cross")):
            if setting not in results.settings:
                continue
            summaries = summarise(results, setting, reference="hilora:gamma=0.4")
            basis.append(f"{setting}: {stand_on(summaries)}")
            found = {s.method: s.average for s in summaries}
            points = {g: found[f"hilora:gamma={g / 100}"] for g in paper.FIGURE_6}
            values = [points[g].value for g in points]
            spread = [[p.value - p.low for p in points.values()], [p.high - p.value for p in points.values()]]
            axes.errorbar(list(points), values, yerr=spread, marker="o", capsize=3, label=setting)
            for g, p in points.items():
                rows[g] += [f"{paper.FIGURE_6[g][column]:.1f}", f"{p.value:.1f} ({p.low:.1f} to {p.high:.1f})"]
        axes.set_xlabel("gamma (%)")
        axes.set_ylabel("average score")
        axes.legend()
    width = max(map(len, rows.values()))
    heading = ["gamma", "within: paper", "within: ours", "cross: paper", "cross: ours"][:width]
    return "\n\n".join([" ".join(basis), markdown_table(heading, list(rows.values()))])


def factor_section(rows: Path) -> list[str]:
    """The variance factor, with and without, on the prompts that `choose` and `ablation` share."""
    found = {s.method: s for s in summarise(Results(runs_in(rows, "choose", "ablation")), "within")}
    pairs = [(found.get(method), found.get(f"{method}:normalise=false")) for method in ("hilora", "hilora-gs")]
    cells = []
    for one, other in pairs:
        if one is None or other is None:
            return []
        d = less(other, one)
        scores = (f"{s.average.value:.1f}" for s in (one, other))
        cells.append((one.method, *scores, told(d), f"{d.p:.3f}", verdict(d)))
    heading = ("method", "with the factor", "without", "difference (95 %)", "p", "")
    basis = stand_on(list(found.values()))
    return [section("The variance factor, within (on the first halves)", basis, markdown_table(heading, cells))]


def fresh_sections(read: Mapping[str, Results]) -> list[str]:
    """The confirmatory rows: all that was measured on them, and hilora-plus beside each."""
    text = []
    for (name, setting), title in FRESH.items():
        if name not in read or "hilora-plus" not in read[name].methods(setting):
            continue
        summaries = whole(read[name], setting)
        about = f"{stand_on(summaries)} Generated in {dtypes(read[name])}."
        text += [section(title, about, markdown_table(*by_method(summaries)), cost_table(summaries))]
        text += [section(f"{title}: against hilora-plus", against_table(summaries, "hilora-plus"))]
    return text


def sections(rows: Path, out: Path) -> list[str]:
    """The page's sections, as far as there are rows; figures are written beside it."""
    text = ["# HiLoRA's experiments, measured here\n\nMade by `python reproduce/hilora/tables.py` from `rows/`.\n"]
    text += [f"{note('batches.md')}\n"]
    read = {
        name: finished(Results(runs_in(rows, *joined(name))))
        for name in (*NEEDED, *CHOSEN, "confirm", "strange")
        if runs_in(rows, name)
    }
    read = {name: results for name, results in read.items() if is_ready(results, NEEDED.get(name))}
    main = {name: read[name] for name in ("iid", "within", "cross") if name in read}
    if main:
        text += [section("All methods", main_table(main))]
        lead = lead_table({name: whole(results, name) for name, results in main.items()})
        text += [section("The lead", "Means over tasks, on the same rows.", lead)]
    if "iid" in read:
        text += setting_section("Every adapter in the pool", read["iid"], "iid", {})
    if "within" in read:
        text += setting_section("Within cluster", read["within"], "within", {})
        text += [seen_section(read["within"], "Within cluster: seen and unseen tasks")]
        text += [useful_section(read["within"], "within", "Within cluster: tasks with a useful adapter")]
    if "cross" in read:
        text += setting_section("Table 2: cross cluster", read["cross"], "cross", paper.TABLE_2)
        text += [useful_section(read["cross"], "cross", "Cross cluster: tasks with a useful adapter")]
    if "nli" in read:
        summaries = summarise(read["nli"], "within")
        tasks = {s.method: dict(sorted(s.tasks.items())) | {"mean": s.average.value} for s in summaries}
        bars(summaries, "NLI tasks, half of them seen (average over halves)", out / "fig1.svg")
        lists = [f"* {split}: {', '.join(names)}" for split, names in halves(read["nli"]).items()]
        text += [
            section(
                "Table 1, Fig. 1: NLI within cluster",
                stand_on(summaries),
                markdown_table(*by_method(summaries)),
                markdown_table(*grid("task", tasks)),
                "![Fig. 1](fig1.svg)",
                beside(tasks, paper.TABLE_1),
                "Seen in each half (the paper's shading, which says what it had as seen, is lost):",
                "\n".join(lists),
            ),
            seen_section(read["nli"], "Table 1: seen and unseen tasks"),
        ]
    if "gamma" in read:
        text += [section("Fig. 6: gamma", gamma_figure(read["gamma"], out / "fig6.svg"), "![Fig. 6](fig6.svg)")]
    text += fresh_sections(read)
    for name, title in CHOSEN.items():
        for setting in read[name].settings if name in read else ():
            summaries = summarise(read[name], setting)
            heading = f"{title}, {setting} (on the first halves of the files)"
            text += [section(heading, stand_on(summaries), markdown_table(*by_method(summaries)))]
    if {"choose", "ablation"} <= read.keys():
        text += factor_section(rows)
    if "within" in read:
        lists = [f"* {split}: {', '.join(names)}" for split, names in halves(read["within"]).items()]
        text += [section("Seen tasks of each half, all clusters", "\n".join(lists))]
    return text + bases.sections(rows.parents[1] / "second")


def main() -> None:
    tables_main(__doc__, "reproduce/hilora", sections)


if __name__ == "__main__":
    main()
