"""The same over flan-mini on its own base, in fp32, with checks of uploads in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soaking.churn import many, shaken
from soaking.things import Default

REQUESTS, OPERATIONS = 600, 60


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Answers are the same, or have another token where two are as likely but for rounding."""
    yield from shaken(Default(home), *many(scale, REQUESTS, OPERATIONS), seed)
