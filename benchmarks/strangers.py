"""Table of README.md on uploads of strangers: honest newcomers and attacks, against the bound on what they take."""

from __future__ import annotations

from collections.abc import Sequence

from lines import Line

from hilora.evaluate.tables import markdown_table

ATTACKS = {
    "copies": "all samples of {adapters} of them",
    "mixed": "samples drawn from all",
    "bare": "the same, embeddings alone",
    "generic": "short prompts for any task",
    "mean": "embeddings near the mean of all",
}


def capture_parts(lines: Sequence[Line]) -> list[str]:
    """The section; none where nothing was measured."""
    if not lines:
        return []
    about = (
        "Newcomers to {adapters} adapters. Refused is who is first on more than {bound:.0%} of the others' samples, "
        "the nearest neighbour's left out, by the way of scoring by which it is most."
    ).format(**lines[0])
    return ["## What an upload may take", "", about, "", capture_table(lines[1:]), ""]


def capture_table(lines: Sequence[Line]) -> str:
    """The honest newcomers together, at their worst, and each attack."""
    honest = [line for line in lines if line["what"] == "newcomer"]
    most = max(honest, key=lambda line: line["share"])
    refused = sum(line["refused"] for line in honest)
    rows = [
        (
            f"{len(honest)} honest ones, each to the others: most of any",
            "",
            f"{most['share']:.1%}, {most['by']}",
            f"{max(line['worst'] for line in honest):.0%}",
            str(refused or "none"),
        )
    ]
    rows += [
        (
            ATTACKS[line["what"]].format(**line),
            str(line["samples"]),
            f"{line['share']:.1%}, {line['by']}",
            f"{line['worst']:.0%}",
            "yes" if line["refused"] else "no",
        )
        for line in lines
        if line["what"] in ATTACKS
    ]
    heading = ["newcomer", "samples", "of the others' samples, by", "of the worst hit adapter's", "refused"]
    return markdown_table(heading, rows)
