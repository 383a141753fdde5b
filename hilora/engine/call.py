"""What one call asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from hilora.base.answers import Reading
from hilora.planner import Routed


@dataclass(frozen=True)
class Call:
    """What one call asks for."""

    routed: Routed
    encoded: Mapping[int, Sequence[int]]  # of each row: its prompt's tokens
    seed: int
    stops: Sequence[str]
    options: Mapping[str, Any]  # of generation, `max_new_tokens` among them
    events: SimpleQueue[Any] = field(default_factory=SimpleQueue)  # where what has ended comes
    see: Callable[[Reading], None] | None = None  # somebody reads the answer as it comes

    @property
    def copies(self) -> int:
        """Answers to each prompt."""
        return int(self.options.get("num_return_sequences") or 1)
