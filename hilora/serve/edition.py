"""A pool as it is now, with a planner for each method. A changed pool is another edition; what runs keeps its own."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

from hilora.engine.bank import Bank
from hilora.engine.generate import HiLoRA
from hilora.engine.lanes import Lanes
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.pool.view import PoolView
from hilora.serve.faults import BusyError

KEPT = 8
"""Methods with options, as alpha=0.1, that stay ready; the least used go. Each takes a while to get ready, in which
others wait, so no more of them are made within a minute."""
MINUTE = 60.0
Key = tuple[str, tuple[tuple[str, Any], ...]]
"""A method and its options."""


class Edition:
    """A pool as it is now, for any method.

    Args:
        router: what serves the default method over this pool.
        others: lanes of other methods, over it or one before.

    Attributes:
        banks: where adapters are laid out, each once.
    """

    def __init__(self, router: HiLoRA, others: Mapping[Key, Lanes]) -> None:
        self.router, self.view = router, router.planner.pool
        self._lanes: OrderedDict[Key, Lanes] = OrderedDict()
        self._before = dict(others)
        self._made_at: deque[float] = deque(maxlen=KEPT)  # of those with options
        self._lock = threading.Lock()
        self._count_banks()

    def _count_banks(self) -> None:
        lanes = (self.router.lanes, *self._before.values(), *self._lanes.values())
        self.banks: tuple[Bank, ...] = tuple({id(each): each for all_of in lanes for each in all_of.banks}.values())

    def lanes(self, method: str, options: Mapping[str, Any]) -> Lanes:
        """The lanes of a method, made when it is first asked for.

        Raises:
            InputError: the method has no such option.
            BusyError: too many different options within a minute.
        """
        key: Key = (method, tuple(sorted(options.items())))
        with self._lock:
            if key not in self._lanes:
                if options:
                    get_method(method, **dict(options))  # refuses what does not exist
                    self._count()
                self._lanes[key] = self._made(key)
                while len(self._lanes) > KEPT:
                    self._lanes.popitem(last=False)
                self._count_banks()
            self._lanes.move_to_end(key)
            return self._lanes[key]

    def _count(self) -> None:
        now = time.monotonic()
        if len(self._made_at) == KEPT and now - self._made_at[0] < MINUTE:
            after = self._made_at[0] + MINUTE - now
            raise BusyError(
                f"More than {KEPT} different method options within a minute.", after, "rate_limit_exceeded"
            )
        self._made_at.append(now)

    def _made(self, key: Key) -> Lanes:
        method, options = key
        if not options and method == self.router.planner.method.name:
            return self.router.lanes
        before, router = self._before.pop(key, None), self.router
        if before is not None:
            return before.over(before.planner.over(self.view))
        embedder = router.planner.embedder
        where, built = router.planner.device, get_method(method, **dict(options))
        planner = Planner(self.view, built, embedder, router.memory, device=where)
        form, packed = router.lanes.bank.form, router.lanes.bank.packed
        return Lanes(router.model, router.tokenizer, planner, router.memory, form=form, packed=packed)

    def over(self, view: PoolView) -> Edition:
        """The next edition, over a changed view of the pool."""
        with self._lock:
            last = list({**self._before, **self._lanes}.items())[-2 * KEPT :]
            edition = Edition(self.router.over(view), dict(last))
            edition._made_at = self._made_at
            return edition
