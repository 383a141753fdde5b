"""A pool as it is now, with lanes for each method. A changed pool is another edition; what runs keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hilora.engine.bank import Bank
from hilora.engine.generate import HiLoRA
from hilora.engine.lanes import Lanes
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.pool.view import PoolView
from hilora.serve.ways import Key, Ways


class Edition:
    """A pool as it is now, for any method.

    Args:
        router: what serves the default method over this pool.
        since: the edition before.

    Attributes:
        banks: where adapters are laid out, each once.
    """

    def __init__(self, router: HiLoRA, since: Edition | None = None) -> None:
        self.router, self.view = router, router.planner.pool
        self.banks: tuple[Bank, ...] = ()
        self._ways: Ways[Lanes] = Ways(self._made, None if since is None else since._ways, self._count_banks)

    def lanes(self, method: str, options: Mapping[str, Any]) -> Lanes:
        """The lanes of a method, made when it is first asked for; raises as `ways.Ways`."""
        return self._ways(method, options)

    def over(self, view: PoolView) -> Edition:
        """The next edition, over a changed view of the pool."""
        return Edition(self.router.over(view), self)

    def _count_banks(self, others: list[Lanes]) -> None:
        lanes = (self.router.lanes, *others)
        self.banks = tuple({id(each): each for all_of in lanes for each in all_of.banks}.values())

    def _made(self, key: Key, before: Lanes | None) -> Lanes:
        method, options = key
        if not options and method == self.router.planner.method.name:
            return self.router.lanes
        router = self.router
        if before is not None:
            return before.over(before.planner.over(self.view))
        embedder = router.planner.embedder
        where, built = router.planner.device, get_method(method, **dict(options))
        planner = Planner(self.view, built, embedder, router.memory, device=where)
        form, packed = router.lanes.bank.form, router.lanes.bank.packed
        return Lanes(router.model, router.tokenizer, planner, router.memory, form=form, packed=packed)
