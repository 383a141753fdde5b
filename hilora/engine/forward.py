"""Some more tokens of each row of a batch, read by the model under the rows' own adapters: ids -> logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.engine.batch import Batch
from hilora.engine.cache import CACHE
from hilora.engine.request import Serve


class Forward:
    """A model that reads on.

    Args:
        model: a decoder in evaluation mode.
        fill: the token that fills batches.
    """

    def __init__(self, model: Any, fill: int) -> None:
        self.model, self.fill = model, fill
        self._serving: Serve | None = None
        known = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._placed = "position_ids" in known

    def __call__(self, batch: Batch, parts: Sequence[Sequence[int]]) -> Float[Tensor, "row vocabulary"]:
        """Logits behind the last of some more tokens of each row; their keys and values are held from now on."""
        held, longest, serve = batch.held, max(map(len, parts)), batch.rows[0].serve
        held.make_room(longest)
        ids, fresh, places = held.laid(parts, self.fill)
        where, options = self.model.device, {CACHE: held.cache, **self._last}
        if self._placed:
            options["position_ids"] = places.to(where)
        if serve is not self._serving:
            self.close()
            self._serving = serve
        with serve(batch.rows):
            mask = torch.cat([held.mask, fresh], 1).to(where)
            out = self.model(input_ids=ids.to(where), attention_mask=mask, use_cache=True, **options)
        held.grew(longest, [0 if r.ended else len(p) for r, p in zip(batch.rows, parts, strict=True)])
        logits: Tensor = out.logits[:, -1]
        return logits

    def step(self, batch: Batch, last: Sequence[int]) -> Float[Tensor, "row vocabulary"]:
        """The same of one more token of each row."""
        return self(batch, [[token] for token in last])

    def close(self) -> None:
        """The model by itself, until the next tokens."""
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.close()
