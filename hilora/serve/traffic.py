"""Which adapters have answered how many prompts, and whose: nobody hears of other tenants' prompts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from hilora.pool.view import Entry
from hilora.serve.asked import Caller

MOST = 100_000
"""Counts that are kept, of tenants and adapters; the smallest go when there are more."""


class Traffic:
    """Prompts that adapters have answered since the start.

    Attributes:
        since: when that was, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.since = time.time()
        self._counts: Counter[tuple[str, str]] = Counter()  # (tenant whose prompt it was, content hash)
        self._lock = threading.Lock()

    def count(self, caller: Caller, hashes: Sequence[str]) -> None:
        """A prompt is answered by adapters, "" being the base model alone."""
        with self._lock:
            self._counts.update((caller.tenant, each) for each in hashes or [""])
            if len(self._counts) > MOST:
                self._counts = Counter(dict(self._counts.most_common(MOST // 2)))

    def of(self, caller: Caller, entries: Sequence[Entry]) -> dict[str, int]:
        """Prompts by name, most first, "" being the base model's.

        Args:
            caller: whose tenant's prompts are counted; an administrator's are everybody's.
            entries: adapters that he sees; others are not told.
        """
        names = {"": ""} | {entry.hash: entry.name for entry in entries}
        with self._lock:
            counts = list(self._counts.items())
        found: Counter[str] = Counter()
        for (tenant, content), count in counts:
            if content in names and ("admin" in caller.scopes or tenant == caller.tenant):
                found[names[content]] += count
        return dict(found.most_common())
