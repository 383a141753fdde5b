"""What stands beside every table of answers that were generated in bf16: that they depend on the batch."""

from pathlib import Path

from stored import stored

from hilora.jsonl import read_lines

ROWS = Path(__file__).parent / "hilora" / "batches.jsonl"
SAID = {"base": "the base's", "oracle": "the oracle's", "hilora-plus": "`hilora-plus`'s"}
"""Way -> whose answers these are."""


def differing(rows: Path = ROWS) -> dict[str, float]:
    """Way of `hilora/batches.py` -> share of its answers that differ between two runs; empty without rows."""
    pairs: dict[str, list[bool]] = {}
    if (path := stored(rows)).exists():
        for line in read_lines(path):
            if "way" in line:
                pairs.setdefault(line["way"], []).append(len(set(line["answers"])) > 1)
    return {way: sum(differs) / len(differs) for way, differs in pairs.items()}


def note(link: str, rows: Path = ROWS) -> str:
    """The sentence, with a link to the page; nothing where it was not measured."""
    found = differing(rows)
    if not found:
        return ""
    shares = ", ".join(f"{found[way]:.0%} of {whose}" for way, whose in SAID.items()).replace("%", " %")
    return (
        "Answers are generated in bf16, in which they depend on what shares the batch: of two runs with other "
        f"batches {shares} differ ([through what]({link}))."
    )
