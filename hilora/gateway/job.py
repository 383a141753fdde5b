"""One request on its way to a backend, and the clock of what its time goes into."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from hilora.gateway.composition import Composition
from hilora.types import Factors


class Clock:
    """Seconds that a request has spent: being routed, waiting, loading, at the backend; the rest is the gateway's."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Meanwhile its time goes into that."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - began

    @property
    def total(self) -> float:
        """All of it, so far."""
        return time.perf_counter() - self.began

    @property
    def own(self) -> float:
        """What the gateway itself has taken so far."""
        return self.total - sum(self.spent.values())

    @property
    def told(self) -> str:
        """The same as a Server-Timing header."""
        return ", ".join(f"{what};dur={1e3 * seconds:.3f}" for what, seconds in self.spent.items())


class Out(Protocol):
    """Takes the answer.

    Attributes:
        told: whether the client has heard a word of it: from then on it cannot be asked for again elsewhere.
    """

    told: bool

    async def whole(self, status: int, kind: str, content: bytes) -> None:
        """All of it, as the backend gave it."""

    async def events(self, data: bytes) -> None:
        """More whole events of a stream, likewise."""

    async def end(self) -> None:
        """The stream is complete."""


@dataclass(frozen=True)
class Job:
    """What a backend is to be asked.

    Attributes:
        path: of its API.
        fields: of the body, all but the model.
        composition: the adapter; None for the base model alone.
        read: gives the factors of its parts, by their content.
        request: the request's id.
        clock: of the request.
    """

    path: str
    fields: Mapping[str, Any]
    composition: Composition | None
    read: Callable[[str], Factors]
    request: str
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def name(self) -> str | None:
        """The adapter's."""
        return None if self.composition is None else self.composition.name

    @property
    def rank(self) -> int:
        """The adapter's."""
        return 0 if self.composition is None else self.composition.rank

    def body(self, model: str) -> bytes:
        """What is sent; as it came, but for the model."""
        return json.dumps({"model": model, **self.fields}, separators=(",", ":")).encode()
