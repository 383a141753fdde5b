"""What a probe gives a model and hears of it: given tokens go in, raw logits come out, and its cache is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hilora.engine.cache import CACHE
from hilora.engine.request import Request

CUT_BY_ROW = (DynamicLayer, DynamicSlidingWindowLayer, getattr(cache_utils, "DummyLayer", DynamicLayer))
"""Layers of a cache that hold keys and values alone, row by row, or nothing."""
RECURRENT = tuple(each for name, each in vars(cache_utils).items() if name.startswith("LinearAttention"))
"""Layers that hold a state of each row, too."""


class UnknownCache(NotImplementedError):
    """A model's cache has layers that may not run in the way that is tried."""


class Given(LogitsProcessor):
    """Makes given tokens the next ones, row by row."""

    def __init__(self, streams: Sequence[Iterator[int]]) -> None:
        self.streams = streams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary) whose largest entry is the given token's."""
        tokens = torch.tensor([next(stream) for stream in self.streams], device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0)


class Told:
    """Picks given tokens, and keeps the raw logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.heard = list(tokens), list[Tensor]()

    def is_plain(self, count: int) -> bool:
        """Never: it wants to see them all."""
        return False

    def barred(self, count: int) -> Sequence[int]:
        """None: given tokens are taken as they are."""
        return ()

    def __call__(self, request: Request, logits: Tensor) -> int:
        """The next of the given ones."""
        self.heard.append(logits)
        return self.tokens[len(request.new)]


class Alone:
    """Nothing serves but the base model."""

    fixed: Any = None

    def __call__(self, requests: Sequence[Request]) -> AbstractContextManager[object]:
        """The model as it is."""
        return nullcontext()

    def begin(self, request: Request) -> None:
        """Nothing to hold."""

    def end(self, request: Request) -> None:
        """Nothing to let go."""

    def close(self) -> None:
        """Nothing is open."""


class Endless:
    """Reads an answer that nothing ends."""

    ended = False

    def feed(self, token: int) -> None:
        """Nothing to know of it."""


class Heard:
    """A model whose raw logits are kept, with the row that each is of.

    Args:
        model: the model.
        layers: of which its caches may be; None for any.
    """

    def __init__(self, model: Any, layers: Sequence[type] | None) -> None:
        self.model, self.layers = model, layers
        self.rows: Sequence[int] = ()
        self.uncut = ""  # what its cache is, or has, that cannot be cut by row
        self.steps: list[tuple[Sequence[int], Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def serve(self, rows: Sequence[int]) -> AbstractContextManager[object]:
        """What is generated next is of these rows."""
        self.rows = rows
        return nullcontext()

    def generate(self, **options: Any) -> Any:
        """As the model does it."""
        found = self.model.generate(**options, output_logits=True, num_beams=1, num_return_sequences=1)
        cache = getattr(found, CACHE, None)
        kinds = [type(layer) for layer in getattr(cache, "layers", ())]
        if self.layers and (unknown := [kind for kind in kinds if kind not in self.layers]):
            raise UnknownCache(f"a layer of its cache is a {unknown[0].__name__}")
        odd = [] if type(cache) is DynamicCache else [type(cache)]
        self.uncut = next((kind.__name__ for kind in (*odd, *kinds) if kind not in (DynamicCache, *CUT_BY_ROW)), "")
        self.steps += [(self.rows, step) for step in found.logits]
        return found

    def logits(self, row: int) -> Tensor:
        """Of a row, at every step: (step, vocabulary)."""
        return torch.stack([step[list(rows).index(row)] for rows, step in self.steps if row in rows])
