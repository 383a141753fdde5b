"""What some routers learn from beyond embeddings: how samples are worded, how held-out ones scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from jaxtyping import Float
from torch import Tensor

from hilora.route.experts import Calibration
from hilora.route.features import Features
from hilora.route.gaussian import RIDGE
from hilora.route.router import Known


class Sampled(Known, Protocol):
    """A pool, or `Collection`."""

    @property
    def calibration(self) -> Calibration | None:
        """Of the scores of `experts`, from the samples; None if there is none yet."""
        ...

    def samples(self) -> Sequence[Features]:
        """Each adapter's samples, in the pool's order."""
        ...

    def learned(self, recipe: str) -> Mapping[str, Tensor] | None:
        """What a recipe has learned from these very samples, if it was kept (`stored`)."""
        ...


class Held:
    """Samples by adapter that are held in memory."""

    held: Sequence[Features]

    def __len__(self) -> int:
        return len(self.held)

    def samples(self) -> Sequence[Features]:
        """Each adapter's samples."""
        return self.held

    def embeddings(self) -> list[Float[Tensor, "_ dim"]]:
        """The embeddings of each adapter's samples."""
        return [own.embeddings for own in self.held]

    def learned(self, recipe: str) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Collection(Held):
    """Samples by adapter that lie in no pool."""

    held: Sequence[Features]
    ridge: float = RIDGE
    calibration: Calibration | None = None


def sampled(known: Known) -> Sampled:
    """What a router was given to learn from, as one that looks at more than embeddings needs it.

    The seam promises embeddings alone, which is all that a newcomer's router has to know; whoever calls `fit` here
    (pools, `Collection`, `apart`) keeps samples as well.
    """
    return cast("Sampled", known)
