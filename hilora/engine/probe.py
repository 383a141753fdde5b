"""What rows may share a batch on a base model: a short row in a small padded batch is compared with the row alone.

Every new token is given, and the raw logits of each step are compared, so that no near tie decides. The batch is
first run in stages, a longer row leaving after its first token; if that gives other logits, or a cache that cannot be
cut by row, it is run to its end; if that gives other logits, too, rows run alone.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hilora.base.padding import pad_batch
from hilora.base.rows import BROKEN, some_tokens
from hilora.engine.attach import carrying
from hilora.engine.batching import Batching
from hilora.engine.cache import CACHE, Growing
from hilora.engine.stages import can_stage, generate_staged

CUT_BY_ROW = (DynamicLayer, DynamicSlidingWindowLayer, Growing, getattr(cache_utils, "DummyLayer", DynamicLayer))
"""Layers of a cache that hold keys and values alone, row by row, or nothing."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest difference that rounding explains, in standard deviations of the logits, by the model's dtype."""
COARSE = 8e-2
"""The same for bf16, and whatever else."""
ROUNDED = 0.25
"""More is no rounding, whatever a second row does without padding: experts are chosen by a hair in half precision."""
LENGTHS, NEW = (7, 2), 3
"""Tokens of the two rows, and new ones of each."""

_log = logging.getLogger("hilora")
_known: weakref.WeakKeyDictionary[nn.Module, dict[int, Batching]] = weakref.WeakKeyDictionary()


def batching_of(model: Any, fill: int) -> Batching:
    """How rows may run on a base model; found once, by running it some times on a few tokens.

    Args:
        model: in evaluation mode, carrying no plan.
        fill: the token that fills batches.

    Raises:
        ModelError: it carries a plan.
    """
    known = _known.setdefault(model, {})
    if fill not in known:
        with carrying(model):
            known[fill], why = _probe(model, fill)
        _log.info("%s: batches are %s, since %s", type(model).__name__, known[fill].value, why)
    return known[fill]


@torch.inference_mode()
def _probe(model: Any, fill: int) -> tuple[Batching, str]:
    try:
        probe = Probe(model, fill)
        alone = probe.alone()
    except BROKEN as error:
        return Batching.ALONE, f"the probe failed ({type(error).__name__})"
    why = "an encoder-decoder has two caches"
    if not model.config.is_encoder_decoder:
        try:
            if probe.same(probe.open(), alone):
                return Batching.OPEN, "a row that is padded, and stays when another leaves, gives what it gives alone"
            why = "a row gives something else when another leaves"
        except BROKEN as error:
            why = f"a cache cannot be cut by row ({type(error).__name__})"
    try:
        if probe.same(probe.closed(), alone):
            return Batching.CLOSED, f"padding changes nothing, but {why}"
        return Batching.ALONE, "padding changes what a row gives"
    except BROKEN as error:
        return Batching.ALONE, f"a padded batch fails ({type(error).__name__})"


class Probe:
    """A long and a short row, run together and the short one alone; each run gives its logits, (step, vocabulary)."""

    def __init__(self, model: Any, fill: int) -> None:
        self.model, self.fill = model, fill
        tokens = some_tokens(model, sum(LENGTHS) + 2 * NEW)
        self.prompts = tokens[: LENGTHS[0]], tokens[LENGTHS[0] : sum(LENGTHS)]
        self.answers = tokens[-2 * NEW : -NEW], tokens[-NEW:]

    def alone(self) -> Tensor:
        """The short row by itself."""
        return self._run([1])

    def closed(self) -> Tensor:
        """Both rows, padded, to their end."""
        return self._run([0, 1])

    def open(self) -> Tensor:
        """Both rows, padded, in stages: the long one leaves after its first token."""
        heard = _Heard(self.model, strict=True)
        ids, mask = self._padded([0, 1])
        options = {"max_new_tokens": NEW, "pad_token_id": self.fill}
        if not can_stage(self.model, options):
            raise NotImplementedError
        given = {"logits_processor": [_Given([iter(answer) for answer in self.answers])]}
        leaves = self.answers[0][0]
        generate_staged(heard, ids, mask, options | given, heard.serve, lambda new: new[0] == leaves)
        return heard.logits(1)

    def same(self, got: Tensor, alone: Tensor) -> bool:
        """Whether a run of both rows gave the short one the logits that it has alone, but for rounding."""
        within = TOLERANCE.get(self.model.dtype, COARSE)
        if (off := _off(got, alone)) <= within:
            return True
        if self.model.dtype.itemsize > 2 or off > ROUNDED:
            return False
        return off <= 2 * _off(self._run([1, 1]), alone)  # what a second row does by rounding, without padding

    def _run(self, rows: Sequence[int]) -> Tensor:
        ids, mask = self._padded(rows)
        heard = _Heard(self.model)
        heard.serve(rows)
        heard.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            pad_token_id=self.fill,
            return_dict_in_generate=True,
            logits_processor=[_Given([iter(self.answers[row]) for row in rows])],
        )
        return heard.logits(1)

    def _padded(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        left = not self.model.config.is_encoder_decoder
        ids, mask = pad_batch([self.prompts[row] for row in rows], self.fill, left=left)
        return ids.to(self.model.device), mask.to(self.model.device)


class _Given(LogitsProcessor):
    """Makes given tokens the next ones, row by row."""

    def __init__(self, streams: Sequence[Iterator[int]]) -> None:
        self.streams = streams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary) whose largest entry is the given token's."""
        tokens = torch.tensor([next(stream) for stream in self.streams], device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0)


class _Heard:
    """A model whose raw logits are kept, with the row that each is of.

    Args:
        model: the model.
        strict: whether its cache must be one that can be cut by row.
    """

    def __init__(self, model: Any, *, strict: bool = False) -> None:
        self.model, self.strict = model, strict
        self.rows: Sequence[int] = ()
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
        if self.strict and not _cut_by_row(getattr(found, CACHE, None)):
            raise NotImplementedError
        self.steps += [(self.rows, step) for step in found.logits]
        return found

    def logits(self, row: int) -> Tensor:
        """Of a row, at every step: (step, vocabulary)."""
        return torch.stack([step[list(rows).index(row)] for rows, step in self.steps if row in rows])


def _cut_by_row(cache: Any) -> bool:
    """Whether a cache holds keys and values of each row, and nothing else."""
    return type(cache) is DynamicCache and all(type(layer) in CUT_BY_ROW for layer in cache.layers)


def _off(got: Tensor, want: Tensor) -> float:
    """The largest difference of logits in standard deviations; infinite where either is not a number."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    finite = want.isfinite()
    if not finite.any() or not torch.equal(finite, got.isfinite()):
        return float("inf")
    return float((got - want)[finite].abs().max() / want[finite].std())
