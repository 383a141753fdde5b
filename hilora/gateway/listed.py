"""A pool's adapters as vLLM is started with them, where it may load none later."""

from __future__ import annotations

from collections.abc import Iterator

from hilora.gateway.composition import Composition, factors_of, needed_rank
from hilora.gateway.folder import AdapterFolder
from hilora.pool.view import PoolView

MOST = 8
"""Of --max-loras, unless there are fewer adapters."""


def write_all(view: PoolView, folder: AdapterFolder, base: str) -> Iterator[str]:
    """Write every adapter that prompts may be routed to; gives their names, as the gateway calls them.

    Args:
        view: the pool.
        folder: of adapters.
        base: what vLLM is told as --model.

    Raises:
        FullError: the disk is full.
        AwayError: the folder's budget is too small.
    """
    for entry in view.entries:
        if entry.enabled:
            alone = Composition(((entry.hash, 1.0),), entry.rank)
            folder.write(alone.name, factors_of(alone, view.factors), base)
            yield alone.name


def options_of(view: PoolView, names: list[str], at: str) -> list[str]:
    """What vLLM is to be started with.

    Args:
        view: the pool.
        names: of its adapters.
        at: path of their folder as vLLM sees it.
    """
    ranks = [entry.rank for entry in view.entries if entry.enabled]
    return [
        "--enable-lora",
        f"--max-loras {min(MOST, len(names))}",
        f"--max-cpu-loras {len(names)}",
        f"--max-lora-rank {needed_rank(max(ranks))}",
        f"--lora-modules {' '.join(f'{name}={at}/{name}' for name in names)}",
    ]
