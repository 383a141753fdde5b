"""What routing reads of a pool: its adapters in their order, what is kept of their samples, their factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.base.embed import EmbedderInfo
from hilora.base.fingerprint import BaseInfo
from hilora.errors import UnknownNameError
from hilora.types import Factors, Route


@dataclass(frozen=True)
class Entry:
    """One adapter in the manifest."""

    name: str  # unique in the pool
    hash: str  # of its factors' content, names their file
    samples: str  # of what is kept of its samples, likewise
    rank: int  # the largest
    num_sites: int
    num_parameters: int
    base_model: str  # that its config names
    num_samples: int  # m
    enabled: bool  # whether it may be routed to
    added: str  # UTC time
    origin: str = "samples"  # or "prompts" that somebody wrote, or a "description"
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # optional fields, see `manifest.OPTIONAL`


@runtime_checkable
class Source(Protocol):
    """Adapters that routes count along: a pool's own, or those that a method makes of them (`derived`)."""

    entries: tuple[Entry, ...]

    @abstractmethod
    def factors(self, content: str) -> Factors:
        """Factors of the adapter with that hash."""

    def count(self, route: Route) -> Route:
        """A route among the pool's adapters as one among these: the same, where there is one for each."""
        return route


class PoolView(Source):
    """What a pool held when it was opened (`folder` opens one), whatever others do to it meanwhile."""

    entries: tuple[Entry, ...]  # ordered by content hash, so that the order of adding changes nothing
    path: Path  # of its folder
    base: BaseInfo  # what the adapters were checked against
    embedder: EmbedderInfo  # what their samples were embedded with
    ridge: float  # of the own-covariance Gaussian, chosen on the samples
    version: int  # counts the changes
    epoch_key: str  # names what its adapters share (`route.epoch`); "" where that is fitted from nothing
    _positions: Mapping[str, int]
    _enabled: Bool[Tensor, " adapter"]
    _public: Bool[Tensor, " adapter"]  # no tenant's own

    @abstractmethod
    def embeddings(self) -> list[Float[Tensor, "_ dim"]]:
        """Those of each adapter's samples, in the pool's order."""

    @abstractmethod
    def shared(self) -> Any:
        """What adapters share (`route.epoch`); None where that is fitted from nothing."""

    @abstractmethod
    def regrown(self, router: Any, since: PoolView) -> Any:
        """A router of an earlier view, made one of this; None where what it has learned need not hold."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """Adapter names in the pool's order."""
        return [entry.name for entry in self.entries]

    def index(self, name: str) -> int:
        """Position of an adapter; an UnknownNameError if there is none of that name."""
        if name not in self._positions:
            raise UnknownNameError("adapter", name, self.names)
        return self._positions[name]

    @property
    def enabled(self) -> Bool[Tensor, " adapter"]:
        """Which adapters may be routed to by whoever knows of them."""
        return self._enabled

    def allowed(
        self, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None
    ) -> Bool[Tensor, " adapter"]:
        """Which adapters anybody may route to: enabled ones that are no tenant's own, of the allow list if given, not
        of the deny list."""
        mask = self._enabled & self._public
        if allow is not None:
            listed = torch.zeros_like(mask)
            listed[[self.index(name) for name in allow]] = True
            mask &= listed
        mask[[self.index(name) for name in deny or ()]] = False
        return mask
