"""What the rows can decide: hilora-plus beside the best of the others in each column, one family of comparisons.

    python reproduce/hilora/decide.py      # decide.md, from committed rows

Each column has one comparison, so that there are as many as columns; their p-values are corrected by Holm's method.
The best of the others is chosen on the same rows, by which it looks better than it is. What a column's rows can show
is told by half the width of the interval: of a true difference so large, about half of such experiments would see
something, and of one 1.4 times as large four in five.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from compared import NO_METHODS, dtypes, finished, less, told
from experiments import page_main
from rounding import note
from stored import joined, runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.statistics import Difference
from hilora.evaluate.tables import markdown_table

HERE = Path(__file__).parent
OWN = "hilora-plus"
ALPHA = 0.05


@dataclass(frozen=True)
class Column:
    """A question, and the rows that answer it.

    Attributes:
        name: of the question.
        folder: of rows, in reproduce/.
        runs: files of rows.
        setting: of them.
        note: what these rows have been used for before.
    """

    name: str
    folder: str
    runs: tuple[str, ...]
    setting: str
    note: str


WORDED = ("mixed", "trained", "rivals")
COLUMNS = (
    Column("own adapter there", "hilora", ("confirm",), "iid", "fresh"),
    Column("half of the adapters", "hilora", ("confirm",), "within", "fresh"),
    Column("no adapter for the task at all", "hilora", ("strange",), "mixed", "fresh"),
    Column("none related", "hilora", joined("cross"), "cross", "reported before, nothing chosen on them"),
    Column("NLI, half of the adapters", "hilora", joined("nli"), "within", "reported before, nothing chosen on them"),
    Column("other wording, own adapter there", "ramole", WORDED, "iid", "reported before, likewise"),
    Column("other wording, own adapter masked", "ramole", WORDED, "ood", "reported before, likewise"),
)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the smallest times their number, the next times one less, never falling."""
    order, found, least = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        found[place] = least
    return found


def compare(rows: Path, column: Column) -> tuple[Summary, Summary, Difference, str] | None:
    """Ours, the best of the others, the difference, what answers were generated in; None where rows are missing."""
    if not (paths := runs_in(rows / column.folder / "rows", *column.runs)):
        return None
    results = finished(Results(paths))
    if column.setting not in results.settings:
        return None
    found = {s.method: s for s in summarise(results, column.setting)}
    others = [s for s in found.values() if not s.method.startswith(OWN) and s.method not in NO_METHODS]
    if OWN not in found or not others:
        return None
    best = max(others, key=lambda s: s.average.value)
    return found[OWN], best, less(found[OWN], best), dtypes(results)


def page(rows: Path) -> str:
    """The page, of the columns that have rows."""
    found = [(column, made) for column in COLUMNS if (made := compare(rows, column)) is not None]
    adjusted = holm([d.p for _, (_, _, d, _) in found])
    lines = []
    for (column, (own, best, d, dtype)), p in zip(found, adjusted, strict=True):
        said = "a tie" if p > ALPHA else "ahead" if d.value > 0 else "behind"
        scores = (f"{own.average.value:.1f}", f"{best.method} {best.average.value:.1f}")
        shown = f"{(d.high - d.low) / 2:.1f}"
        about = f"{column.note}; {dtype}"
        lines.append(
            (column.name, str(own.num_prompts), *scores, told(d), f"{d.p:.3f}", f"{p:.3f}", said, shown, about)
        )
    heading = (
        "column",
        "prompts",
        OWN,
        "best of the others",
        "difference (95 %)",
        "p",
        "Holm",
        "",
        "shows from",
        "rows",
    )
    missing = [column.name for column in COLUMNS if column.name not in {of.name for of, _ in found}]
    left = f"\n\nNot there yet: {'; '.join(missing)}." if missing else ""
    return (
        "# What the rows can decide\n\nMade by `python reproduce/hilora/decide.py`, whose first lines say how it is "
        f"meant. {note('batches.md')} The last cell of a line says what its answers were generated in. "
        f"One family of {len(found)} comparisons."
        f"\n\n## Column by column\n\n{markdown_table(heading, lines)}{left}\n"
    )


def main() -> None:
    page_main(__doc__, HERE / "decide.md", HERE.parent, page, "the folder of hilora/rows and ramole/rows")


if __name__ == "__main__":
    main()
