"""Ways to serve prompts: one for each method and its options, made when it is first asked for."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from hilora.methods.lookup import get_method
from hilora.serve.faults import BusyError

KEPT = 8
"""Methods with options, as alpha=0.1, that stay ready; the least used go. Each takes a while to get ready, in which
others wait, so no more of them are made within a minute."""
MINUTE = 60.0
Key = tuple[str, tuple[tuple[str, Any], ...]]
"""A method and its options."""
T = TypeVar("T")


class Ways(Generic[T]):
    """Ways over one view of a pool.

    Args:
        make: a method with its options, and its way over an earlier view, if there was one -> its way.
        before: ways over an earlier view.
        made: called, if given, with all ways whenever there is another.
    """

    def __init__(
        self,
        make: Callable[[Key, T | None], T],
        before: Ways[T] | None = None,
        made: Callable[[list[T]], object] | None = None,
    ) -> None:
        self._make, self._tell = make, made
        self._ready: OrderedDict[Key, T] = OrderedDict()
        self._before = {} if before is None else before._last()
        self._made_at: deque[float] = deque(maxlen=KEPT) if before is None else before._made_at  # with options
        self._lock = threading.Lock()
        self._told()

    def __call__(self, method: str, options: Mapping[str, Any]) -> T:
        """The way of a method.

        Raises:
            InputError: the method has no such option.
            BusyError: too many different options within a minute.
        """
        key: Key = (method, tuple(sorted(options.items())))
        with self._lock:
            if key not in self._ready:
                if options:
                    get_method(method, **dict(options))  # refuses what does not exist
                    self._count()
                self._ready[key] = self._make(key, self._before.pop(key, None))
                while len(self._ready) > KEPT:
                    self._ready.popitem(last=False)
                self._told()
            self._ready.move_to_end(key)
            return self._ready[key]

    def _count(self) -> None:
        now = time.monotonic()
        if len(self._made_at) == KEPT and now - self._made_at[0] < MINUTE:
            after = self._made_at[0] + MINUTE - now
            raise BusyError(
                f"More than {KEPT} different method options within a minute.", after, "rate_limit_exceeded"
            )
        self._made_at.append(now)

    def _last(self) -> dict[Key, T]:
        with self._lock:
            return dict(list({**self._before, **self._ready}.items())[-2 * KEPT :])

    def _told(self) -> None:
        if self._tell is not None:
            self._tell([*self._before.values(), *self._ready.values()])
