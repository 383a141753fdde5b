"""Which method is ahead: paired differences of summaries, on the same prompts, by setting, task and cluster."""

from collections.abc import Collection, Mapping, Sequence

from hilora.evaluate.report import Results, Summary, percent_difference
from hilora.evaluate.statistics import Difference, mean_of
from hilora.evaluate.tables import REFERENCES, markdown_table

Summaries = Sequence[Summary]
OURS = ("hilora", "hilora-plus")
NO_METHODS = (*REFERENCES, "base", "constant")
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""A header's word for what answers were generated in -> the pages'."""


def finished(results: Results) -> Results:
    """Without methods that have not been measured on all rows yet."""
    for setting in results.settings:
        most = max(len(results.rows[setting, method]) for method in results.methods(setting))
        for method in results.methods(setting):
            if len(results.rows[setting, method]) < most:
                del results.rows[setting, method]
    return results


def dtypes(results: Results) -> str:
    """What answers were generated in, by the headers of their sittings."""
    found = {setup["dtype"] for setup in results.setups}
    return " and ".join(sorted(SHORT.get(each, each) for each in found))


def verdict(found: Difference) -> str:
    """What an interval of 95 % says of the first of two."""
    return "a tie" if found.low <= 0 <= found.high else "ahead" if found.value > 0 else "behind"


def told(found: Difference) -> str:
    """A difference with its interval; no zero has a sign of its own."""
    value, low, high = (round(each, 1) + 0.0 for each in (found.value, found.low, found.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def less(one: Summary, other: Summary, tasks: Collection[str] | None = None) -> Difference:
    """Mean over the tasks (default: all) of one method less that of another, in percent."""
    names = one.tasks if tasks is None else tasks
    return percent_difference(*(mean_of([s.drawn[task] for task in names]) for s in (one, other)))


def useful_tasks(found: Mapping[str, Summary]) -> set[str]:
    """Tasks whose own adapter beats base and the constant answer, each by an interval that excludes 0."""
    others = [found[name] for name in ("base", "constant")]
    return {
        task
        for task in found["oracle"].tasks
        if all(verdict(less(found["oracle"], other, [task])) == "ahead" for other in others)
    }


def against_table(summaries: Summaries, reference: str) -> str:
    """Paired differences of all methods to a reference."""
    (other,) = (s for s in summaries if s.method == reference)
    found = [(s.method, less(s, other)) for s in summaries if s is not other]
    rows = [(name, f"{d.value:+.1f}", f"{d.low:+.1f} to {d.high:+.1f}", f"{d.p:.3f}") for name, d in found]
    return markdown_table(("method", "difference", "95 %", "p"), rows)


def lead_table(found: Mapping[str, Summaries]) -> str:
    """The better of hilora and hilora-plus beside the best method that is not HiLoRA's, from setting -> summaries."""
    rows = []
    for setting, summaries in found.items():
        ours = max((s for s in summaries if s.method in OURS), key=lambda s: s.average.value)
        others = [s for s in summaries if not s.method.startswith("hilora") and s.method not in REFERENCES]
        best = max(others, key=lambda s: s.average.value)
        d = less(ours, best)
        names = (f"{s.method} {s.average.value:.1f}" for s in (ours, best))
        rows.append((setting, *names, told(d), f"{d.p:.3f}", verdict(d)))
    heading = ("setting", "best of ours", "best of the others", "paired difference (95 %)", "p", "")
    return markdown_table(heading, rows)


def clusters_table(summaries: Summaries, clusters: Mapping[str, str], method: str = "hilora-plus") -> str:
    """Cluster by cluster, a method beside the best of the others there, which is chosen on the same rows.

    Args:
        summaries: of one setting.
        clusters: task -> cluster.
        method: whose verdicts.
    """
    (own,) = (s for s in summaries if s.method == method)
    others = [s for s in summaries if s is not own and s.method not in NO_METHODS]
    rows = []
    for cluster in sorted(set(map(clusters.__getitem__, own.tasks))):
        tasks = [task for task in own.tasks if clusters[task] == cluster]
        score = {s.method: sum(s.tasks[task] for task in tasks) / len(tasks) for s in summaries}
        best = max(others, key=lambda s: score[s.method])
        ahead = sorted(s.method for s in others if verdict(less(own, s, tasks)) == "behind")
        d = less(own, best, tasks)
        rows.append(
            (
                cluster,
                str(len(tasks)),
                f"{score[method]:.1f}",
                f"{best.method} {score[best.method]:.1f}",
                told(d),
                verdict(d),
                ", ".join(ahead) or "-",
            )
        )
    heading = ("cluster", "tasks", method, "best of the others", "difference (95 %)", "", "significantly ahead of it")
    return markdown_table(heading, rows)
