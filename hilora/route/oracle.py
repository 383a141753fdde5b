"""The adapter that a label names: the column that papers call LoRA, oracle or perfect selection."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.errors import InputError
from hilora.route.router import Known, Query
from hilora.types import Route


@dataclass
class Oracle:
    """Weight 1 on the labelled adapter."""

    needs_embedding: bool = field(default=False, init=False)
    seen_above_: float | None = field(default=None, init=False)

    def fit(self, known: Known) -> Oracle:
        """Nothing to learn."""
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Weight 1 on each row's label.

        Raises:
            InputError: a row has no label, or its adapter is not allowed.
        """
        if query.labels is None or bool((query.labels < 0).any()):
            raise InputError(
                "The oracle needs the right adapter of every prompt: pass labels=[...] (adapter names), "
                "or choose a method that routes by itself, such as 'hilora'."
            )
        if not bool(allowed.gather(1, query.labels[:, None]).all()):
            raise InputError("The oracle's label names an adapter that is not allowed (allow, deny, disabled).")
        ids = query.labels[:, None]
        ones = torch.ones(len(ids), 1)
        return Route(ids, ones.clone(), ones)
