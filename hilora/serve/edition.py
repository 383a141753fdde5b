"""A pool as it is now, with a planner for each method. A changed pool is another edition; what runs keeps its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from hilora.engine.generate import HiLoRA
from hilora.engine.lanes import Lanes
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.pool.view import PoolView

KEPT = 8
"""Methods with options, as alpha=0.1, that stay ready; the least used go."""
Key = tuple[str, tuple[tuple[str, Any], ...]]
"""A method and its options."""


class Edition:
    """A pool as it is now, for any method.

    Args:
        router: what serves the default method over this pool.
        others: lanes of other methods, over it or one before.
    """

    def __init__(self, router: HiLoRA, others: Mapping[Key, Lanes]) -> None:
        self.router, self.view = router, router.planner.pool
        self._lanes: OrderedDict[Key, Lanes] = OrderedDict()
        self._before = dict(others)
        self._lock = threading.Lock()

    def lanes(self, method: str, options: Mapping[str, Any]) -> Lanes:
        """The lanes of a method, made when it is first asked for.

        Raises:
            InputError: the method has no such option.
        """
        key: Key = (method, tuple(sorted(options.items())))
        with self._lock:
            if key not in self._lanes:
                self._lanes[key] = self._made(key)
                while len(self._lanes) > KEPT:
                    self._lanes.popitem(last=False)
            self._lanes.move_to_end(key)
            return self._lanes[key]

    def _made(self, key: Key) -> Lanes:
        method, options = key
        if not options and method == self.router.planner.method.name:
            return self.router.lanes
        before, router = self._before.pop(key, None), self.router
        if before is not None:
            return before.over(before.planner.over(self.view))
        embedder = router.planner.embedder
        planner = Planner(self.view, get_method(method, **dict(options)), embedder, router.memory)
        form, packed = router.lanes.bank.form, router.lanes.bank.packed
        return Lanes(router.model, router.tokenizer, planner, router.memory, form=form, packed=packed)

    def over(self, view: PoolView) -> Edition:
        """The next edition, over a changed view of the pool."""
        with self._lock:
            return Edition(self.router.over(view), {**self._before, **self._lanes})
