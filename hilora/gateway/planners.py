"""A planner for each method over a pool as it is now, without a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hilora.base.embed import Embedder
from hilora.methods.lookup import get_method
from hilora.methods.method import Method
from hilora.planner import Planner
from hilora.pool.memory import Memory
from hilora.pool.view import PoolView
from hilora.serve.ways import Key, Ways


@dataclass(frozen=True)
class Way:
    """One method over one view."""

    planner: Planner


@dataclass(frozen=True)
class Maker:
    """What all planners have in common.

    Attributes:
        method, options: the default.
        check: refuses methods that cannot be served.
        embedder: embeds prompts.
        memory: where adapters that a method makes are kept.
    """

    method: str
    options: Mapping[str, Any]
    check: Callable[[Method], Method]
    embedder: Embedder
    memory: Memory

    def __call__(self, view: PoolView, method: str, options: Mapping[str, Any]) -> Way:
        """A way over a view."""
        return Way(Planner(view, self.check(get_method(method, **dict(options))), self.embedder, self.memory))


class Planners:
    """A view of the pool, with the ways to route over it.

    Args:
        view: the pool.
        maker: makes planners.
        since: those over an earlier view.
    """

    def __init__(self, view: PoolView, maker: Maker, since: Planners | None = None) -> None:
        self.view, self.maker = view, maker
        self._ways: Ways[Way] = Ways(self._made, None if since is None else since._ways)
        before = None if since is None else since.default
        self.default: Way = self._made((maker.method, tuple(maker.options.items())), before)

    def way(self, method: str, options: Mapping[str, Any]) -> Way:
        """The way of a method; of the default, without other options, with its own. Raises as `ways.Ways`."""
        return self.default if method == self.maker.method and not options else self._ways(method, options)

    def _made(self, key: Key, before: Way | None) -> Way:
        if before is not None:
            return Way(before.planner.over(self.view))
        method, options = key
        return self.maker(self.view, method, dict(options))
