"""What stands beside every table of answers that were generated in bf16: that they depend on the batch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from stored import stored

from hilora.jsonl import read_lines

ROWS = Path(__file__).parent / "hilora" / "batches.jsonl"
SAID = {"base": "the base's", "oracle": "the oracle's", "hilora-plus": "`hilora-plus`'s"}
"""Way -> whose answers these are."""


def by_way(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Way of `hilora/batches.py` -> its lines."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "way" in line:
            found.setdefault(line["way"], []).append(line)
    return found


def differs(line: Mapping[str, Any]) -> bool:
    """Whether the answers of two runs differ."""
    return len(set(line["answers"])) > 1


def note(link: str, rows: Path = ROWS) -> str:
    """The sentence, with a link to the page; nothing where it was not measured."""
    path = stored(rows)
    found = by_way(read_lines(path)) if path.exists() else {}
    if not found:
        return ""
    shares = ", ".join(f"{100 * mean(map(differs, found[way])):.0f} % of {whose}" for way, whose in SAID.items())
    return (
        "Answers are generated in bf16, in which they depend on what shares the batch: of two runs with other "
        f"batches {shares} differ ([through what]({link}))."
    )
