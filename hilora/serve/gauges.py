"""Numbers of a desk that are read when `/metrics` is asked for; who counts them knows nothing of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from hilora.engine.batching import Batching
from hilora.engine.thread import Engine
from hilora.serve.damages import Damages
from hilora.serve.edition import Edition
from hilora.serve.meters import Meters


@runtime_checkable
class Watched(Protocol):
    """What a desk lets see."""

    edition: Edition
    engine: Engine
    damages: Damages
    closing: bool

    @property
    def methods(self) -> Sequence[str]:
        """Those that may be asked for, the default first."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that have not started."""
        ...

    @property
    def running(self) -> int:
        """Requests that share the model's steps."""
        ...

    @property
    def at_work(self) -> tuple[Sequence[str], Sequence[str]]:
        """Names of adapters of requests that run, and of those that wait."""
        ...


def watch(meters: Meters, desk: Watched, most: int) -> None:
    """Have meters show what a desk lets see.

    Args:
        meters: of the server.
        desk: its memory of adapters is one and the same, whatever becomes of the pool.
        most: requests that share a step.
    """
    memory = desk.edition.router.memory
    for name, about, read in (
        ("hilora_waiting", "Requests in the line", lambda: desk.waiting),
        ("hilora_running", "Requests that share the model's steps", lambda: desk.running),
        ("hilora_adapters", "Adapters in the pool", lambda: len(desk.edition.view)),
        ("hilora_adapters_damaged", "Adapters that are not routed to", lambda: len(_damaged(desk))),
        ("hilora_pool_version", "The pool's version", lambda: desk.edition.view.version),
        ("hilora_kv_bytes", "Keys and values in memory", lambda: desk.engine.loop.num_bytes),
        ("hilora_adapter_memory_bytes", "Adapters in memory, and stacks of them", lambda: memory.used),
        ("hilora_adapter_memory_limit_bytes", "What they may take", lambda: memory.limit),
        ("hilora_adapter_slots_bytes", "Adapters laid out for the model's steps", lambda: _laid_out(desk.edition)),
    ):
        meters.watch(name, about, read)
    for name, about, read in (
        ("hilora_adapter_loads", "Adapters loaded into memory", lambda: memory.loads),
        ("hilora_adapter_hits", "Adapters that were in memory when a request came for them", lambda: memory.hits),
        ("hilora_adapter_evictions", "Adapters given up for others", lambda: memory.evicted),
    ):
        meters.watch_count(name, about, read)
    meters.watch_adapters(lambda: desk.at_work, most)


def state_of(desk: Watched) -> dict[str, Any]:
    """What `/readyz` says to administrators."""
    view, router = desk.edition.view, desk.edition.router
    return {
        "status": "closing" if desk.closing else "ready",
        "base": view.base.name,
        "method": desk.methods[0],
        "lane": "joining" if router.batching is Batching.OPEN else f"closed ({router.batching.value})",
        "epoch": router.planner.epoch,
        "adapters": len(view),
        "damaged": [entry.name for entry in desk.damages.entries(view)],
        "pool_version": view.version,
        "waiting": desk.waiting,
        "running": desk.running,
    }


def _damaged(desk: Watched) -> Sequence[object]:
    """Adapters whose files are damaged."""
    return desk.damages.entries(desk.edition.view)


def _laid_out(edition: Edition) -> int:
    """Bytes of the adapters that lie in slots, of every method that is ready."""
    return sum(bank.num_bytes for bank in edition.banks)
