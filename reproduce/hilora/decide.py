"""What the rows can decide: hilora-plus beside the best of the others in each column, one family of comparisons.

    python reproduce/hilora/decide.py      # decide.md, from committed rows

Each column has one comparison, so that there are as many as columns; their p-values are corrected by Holm's method.
The best of the others is chosen on the same rows, by which it looks better than it is. What a column's rows can show
is told by half the width of the interval: of a true difference so large, about half of such experiments would see
something, and of one 1.4 times as large four in five.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from compared import NO_METHODS, finished, less, told
from rounding import note
from stored import dtypes, joined, runs_in

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


def paths_of(rows: Path, column: Column) -> list[Path]:
    """The files of a column, as far as they are there."""
    return runs_in(rows / column.folder / "rows", *column.runs)


def compare(rows: Path, column: Column) -> tuple[Summary, Summary, Difference] | None:
    """Ours, the best of the others, and the difference; None where rows are missing."""
    if not (paths := paths_of(rows, column)):
        return None
    results = finished(Results(paths))
    if column.setting not in results.settings:
        return None
    found = {s.method: s for s in summarise(results, column.setting)}
    others = [s for s in found.values() if not s.method.startswith(OWN) and s.method not in NO_METHODS]
    if OWN not in found or not others:
        return None
    best = max(others, key=lambda s: s.average.value)
    return found[OWN], best, less(found[OWN], best)


def page(rows: Path) -> str:
    """The page, of the columns that have rows."""
    found = [(column, made) for column in COLUMNS if (made := compare(rows, column)) is not None]
    adjusted = holm([d.p for _, (_, _, d) in found])
    lines = []
    for (column, (own, best, d)), p in zip(found, adjusted, strict=True):
        said = "a tie" if p > ALPHA else "ahead" if d.value > 0 else "behind"
        scores = (f"{own.average.value:.1f}", f"{best.method} {best.average.value:.1f}")
        shown = f"{(d.high - d.low) / 2:.1f}"
        about = f"{column.note}; {' and '.join(dtypes(paths_of(rows, column)))}"
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=Path, default=HERE.parent, help="the folder of hilora/rows and ramole/rows")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    (args.out / "decide.md").write_text(page(args.rows))


if __name__ == "__main__":
    main()
