"""What some routers learn from beyond embeddings: how samples are worded, how held-out ones scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from jaxtyping import Float
from torch import Tensor

from hilora.route.epoch import Epoch
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

    @property
    def epoch_key(self) -> str:
        """Names the epoch; "" where there is none."""
        ...

    def samples(self, some: Sequence[int] | None = None) -> Sequence[Features]:
        """Each adapter's samples, or those of some, by position; in the pool's order."""
        ...

    def sample_keys(self) -> Sequence[str]:
        """What each adapter's samples are known by; equal keys, equal samples."""
        ...

    def learned(self, recipe: str) -> Mapping[str, Tensor] | None:
        """What a recipe has learned from these very samples, or under their epoch, if it was kept (`stored`)."""
        ...


class Held:
    """Samples by adapter that are held in memory."""

    held: Sequence[Features]
    epoch: Epoch | None = None

    def __len__(self) -> int:
        return len(self.held)

    def shared(self) -> Epoch | None:
        """The epoch."""
        return self.epoch

    @property
    def epoch_key(self) -> str:
        """The epoch's."""
        return "" if self.epoch is None else self.epoch.key

    def samples(self, some: Sequence[int] | None = None) -> Sequence[Features]:
        """Each adapter's samples, or those of some, by position."""
        return self.held if some is None else [self.held[i] for i in some]

    def sample_keys(self) -> list[str]:
        """Their content hashes."""
        return [own.content_hash() for own in self.held]

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
    epoch: Epoch | None = None


def sampled(known: Known) -> Sampled:
    """What a router was given to learn from, as one that looks at more than embeddings needs it.

    The seam promises embeddings alone, which is all that a newcomer's router has to know; whoever calls `fit` here
    (pools, `Collection`, `apart`) keeps samples as well.
    """
    return cast("Sampled", known)
