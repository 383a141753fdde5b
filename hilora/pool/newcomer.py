"""What an adapter would do to the others of a pool (`route.capture`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from jaxtyping import Bool
from torch import Tensor

from hilora.pool.folder import PoolFolder
from hilora.pool.reading import DamagedError
from hilora.route.capture import Capture, capture
from hilora.route.crossfit import MOST_ADAPTERS
from hilora.route.features import Features

CAPTURE = 0.5
"""Share of the other adapters' samples from which on a newcomer takes too much."""


def captured(
    pool: PoolFolder,
    newcomer: Features,
    name: str,
    seen: Bool[Tensor, " adapter"] | None = None,
    most: int = MOST_ADAPTERS,
) -> Capture:
    """What an adapter would take from the others of a pool.

    Args:
        pool: the pool.
        newcomer: what is known of its samples.
        name: in the pool; one that has it gives way, and is not asked.
        seen: which others it competes with; default: those that are everybody's.
        most: of larger pools so many adapters are asked, evenly taken.

    Raises:
        PoolError: the pool's epoch cannot be read.
    """
    mask = pool.allowed() if seen is None else seen & pool.enabled
    some = [place for place in mask.nonzero()[:, 0].tolist() if pool.entries[place].name != name]
    some = some[:: max(1, -(-len(some) // most))]
    return capture(newcomer, readable(pool, some), ridge=pool.ridge, calibration=pool.calibration, epoch=pool.epoch)


def readable(pool: PoolFolder, some: Sequence[int]) -> list[Features]:
    """What is kept of some adapters' samples, but for damaged ones: nobody is routed to their adapters."""
    found = []
    for place in some:
        with suppress(DamagedError):
            found += pool.samples([place])
    return found


def told(found: Capture, limit: float) -> str:
    """What to tell whoever brings an adapter that takes too much; names no other adapter."""
    return (
        f"It would take {found.share:.0%} of the other adapters' samples, by {found.by}; at most {limit:.0%} may be. "
        "Its samples are too mixed, too general or too few: give about 20 typical prompts of its training data."
    )
