"""A model of a pool that grows: what was learned stays, newcomers are added, and who is where is kept beside.

Each of an adapter's numbers depends on its own samples and on what all share (a covariance, a ridge, how common a
phrase is: `epoch`), so a pool that has changed has the same numbers, in another order. They lie in two parts: most of
them in one that nothing is done to, which views of the pool share, and the late ones in one that is written anew with
each newcomer, until it is large enough to be worth a new main part. `rows` says how a model is added to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.base.devices import at
from hilora.route.features import Features
from hilora.route.rows import KINDS

M = TypeVar("M")

LATE = 1 / 4
"""Share of the main part that the late one may reach; a new epoch is due before, and starts with one part."""
LEAST = 64
"""Late adapters that are never too many."""


@dataclass(frozen=True)
class Parts(Generic[M]):
    """A model in two parts.

    Attributes:
        main: most adapters.
        late: those that came since.
        place: where each of the pool's adapters stands: in the main part, and after it in the late one.
    """

    main: M
    late: M | None
    place: Int[Tensor, " adapter"]

    @classmethod
    def whole(cls, model: M) -> Parts[M]:
        """A model whose adapters stand in the pool's order."""
        return cls(model, None, torch.arange(_size(model)))

    def __len__(self) -> int:
        return len(self.place)

    def score(self, texts: Any) -> Tensor:
        """The model's score of every adapter of the pool, (text, adapter), where it works them out."""
        found = self.main.score(texts)  # type: ignore[attr-defined]
        if self.late is not None:
            found = torch.cat([found, self.late.score(texts).to(found.device)], 1)  # type: ignore[attr-defined]
        return torch.index_select(found, 1, at(self.place, found.device))

    def some(self, text: Any, adapters: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """The model's score of some of the pool's adapters, for one text, at a cost that follows their number."""
        score, place, size = KINDS[type(self.main)].some, self.place[adapters], _size(self.main)
        late = place >= size
        if self.late is None or not late.any():
            return score(self.main, text, place)
        found = torch.empty(len(place))
        found[~late] = score(self.main, text, place[~late])
        found[late] = score(self.late, text, place[late] - size)
        return found

    def over(self, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> Parts[M]:
        """The model of a changed pool.

        Args:
            newcomers: samples of the adapters that are new, in the new pool's order.
            origin: where each of its adapters was in this pool; -1 for a newcomer.
        """
        kind = KINDS[type(self.main)]
        late, held = self.late, _size(self.main) + (0 if self.late is None else _size(self.late))
        new = origin < 0
        place = self.place[origin.clamp_min(0)] if len(self) else torch.zeros_like(origin)
        place[new] = held + torch.arange(len(newcomers))
        if newcomers:
            fresh = kind.of(self.main, newcomers)
            late = fresh if late is None else kind.gather([late, fresh], torch.arange(_size(late) + _size(fresh)))
        made = Parts(self.main, late, place)
        many = late is not None and _size(late) > LEAST + LATE * _size(self.main)
        gone = held + len(newcomers) - len(place) > LEAST + LATE * len(place)
        return made.together() if many or gone else made

    def together(self) -> Parts[M]:
        """The same in one part, without adapters that are in the pool no more."""
        kept, place = torch.unique(self.place, return_inverse=True)  # two adapters may have the same samples
        parts = [self.main] if self.late is None else [self.main, self.late]
        return Parts(KINDS[type(self.main)].gather(parts, kept), None, place)


def _size(model: Any) -> int:
    return int(KINDS[type(model)].size(model))
