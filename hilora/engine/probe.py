"""What rows may share a batch on a base model: short rows in a small padded batch are compared with each alone.

Every new token is given, and the raw logits of each step are compared, so that no near tie decides. The batch is
first run in stages, a longer row leaving after its first token; if that gives other logits, or a cache that cannot be
cut by row, it is run to its end; if that gives other logits, too, rows run alone. They also do where a layer's cache
is of a kind that is not known here: what it keeps of a long prompt does not show in a short one. Windows of attention
are made so small meanwhile that it does (`narrow`).

What a base's code does to a row does not depend on its precision, and in fp32 no rounding is large enough to hide it,
or to pass for it: so a base in half precision is judged in fp32, all of its layers, with its own weights
(`base.upcast`; a shallow copy would have to know which layers a hybrid cannot do without). One that does not run so
(weights quantised or offloaded, kernels for half precision alone, no memory) is judged as it is, by a tolerance.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hilora.base.models import first_line
from hilora.base.padding import pad_batch
from hilora.base.rows import BROKEN, some_tokens
from hilora.base.upcast import in_fp32, is_half
from hilora.engine.attach import carrying
from hilora.engine.batching import Batching
from hilora.engine.heard import CUT_BY_ROW, RECURRENT, Alone, Endless, Given, Heard, Told, UnknownCache
from hilora.engine.loop import Loop
from hilora.engine.narrow import narrow
from hilora.engine.request import Request

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest difference that rounding explains, in standard deviations of the logits, by the dtype it is judged in."""
COARSE = 8e-2
"""The same for bf16, and whatever else."""
ROUNDED = 0.25
"""More is no rounding, whatever a second row does without padding: experts are chosen by a hair in half precision."""
DEEP = 0.5
"""What many layers of attention may round to in half precision: SmolLM2-135M in bf16 differs by 0.21 with padding,
and by 0.29 from itself in fp32. Only where the cache says that attention is all there is."""
LENGTHS, NEW = (16, 6, 2), 3
"""Tokens of the rows, and new ones of each."""

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
        with carrying(model), narrow(model):
            known[fill], why = _probe(model, fill)
        _log.info("%s: batches are %s, since %s", type(model).__name__, known[fill].value, why)
    return known[fill]


@torch.inference_mode()
def _probe(model: Any, fill: int) -> tuple[Batching, str]:
    if getattr(model.config, "attention_type", None) == "block_sparse":
        return Batching.ALONE, "its attention is another one in a batch that is long enough"
    how, dtype = "", model.dtype
    if is_half(model):
        try:
            with in_fp32(model):
                return _judge(Probe(model, fill, torch.float32))
        except BROKEN as error:
            how = f" (judged by a tolerance, not in fp32: {first_line(error)})"
    try:
        found, why = _judge(Probe(model, fill, dtype))
    except BROKEN as error:
        found, why = Batching.ALONE, f"a row alone, or a padded batch, fails ({type(error).__name__})"
    return found, why + how


def _judge(probe: Probe) -> tuple[Batching, str]:
    """A class, and why; raises one of `BROKEN` where the model fails at rows alone, or at a padded batch."""
    alone = [probe.run([row])[0] for row in probe.short]
    why = "an encoder-decoder has two caches"
    if not probe.model.config.is_encoder_decoder:
        try:
            if probe.same(probe.open(), alone, DEEP):
                return Batching.OPEN, "a row that is padded, and stays when another leaves, gives what it gives alone"
            why = "a row gives something else when another leaves"
        except BROKEN as error:
            why = f"a cache cannot be cut by row ({first_line(error)})"
    try:
        if probe.same(probe.closed(), alone):
            return Batching.CLOSED, f"padding changes nothing, but {why}"
        return Batching.ALONE, "padding changes what a row gives"
    except UnknownCache as error:
        return Batching.ALONE, str(error)


class Probe:
    """A long row and short ones, run in several ways; a run gives the short ones' logits, (step, vocabulary) each.

    Args:
        model: the base model.
        fill: the token that fills batches.
        dtype: in which the model computes.
    """

    def __init__(self, model: Any, fill: int, dtype: torch.dtype) -> None:
        self.model, self.fill, self.dtype, self.short = model, fill, dtype, range(1, len(LENGTHS))
        tokens = iter(some_tokens(model, sum(LENGTHS) + NEW * len(LENGTHS)))
        self.prompts = [[next(tokens) for _ in range(length)] for length in LENGTHS]
        self.answers = [[next(tokens) for _ in range(NEW)] for _ in LENGTHS]
        self.uncut = ""  # what a cache that was seen is, or has, that cannot be cut by row

    def closed(self) -> list[Tensor]:
        """All rows, padded, to their end."""
        return self.run(range(len(LENGTHS)))

    def open(self) -> list[Tensor]:
        """Rows that come and go: the long one leaves after its first token, the last one joins then."""
        if self.uncut:
            raise UnknownCache(f"it has a {self.uncut}")
        loop, picks, serve = Loop(self.model, self.fill), [Told(answer) for answer in self.answers], Alone()
        loop.most = len(LENGTHS)
        asked = [
            Request(prompt, NEW if row else 1, Endless(), pick, serve)
            for row, (prompt, pick) in enumerate(zip(self.prompts, picks, strict=True))
        ]
        loop.waiting.extend(asked[:-1])
        loop.step()
        loop.waiting.append(asked[-1])
        while loop.busy:
            loop.step()
        for request in asked:
            if request.error is not None:
                raise request.error
        return [torch.stack(picks[row].heard) for row in self.short]

    def same(self, got: Sequence[Tensor], alone: Sequence[Tensor], most: float = 0.0) -> bool:
        """Whether a run of all rows gave the short ones the logits that they have alone, but for rounding.

        Args:
            got, alone: logits of the short rows.
            most: a difference that half precision is allowed without being asked.
        """
        pairs = zip(got, alone, strict=True)
        return all(self._same(row, *pair, most) for row, pair in zip(self.short, pairs, strict=True))

    def _same(self, row: int, got: Tensor, alone: Tensor, most: float) -> bool:
        if (off := _off(got, alone)) <= TOLERANCE.get(self.dtype, COARSE):
            return True
        if self.dtype.itemsize > 2:
            return False
        if off <= most or off > ROUNDED:
            return off <= most
        return off <= 2 * _off(self.run([row, row])[0], alone)  # what a second row does by rounding, without padding

    def run(self, rows: Sequence[int]) -> list[Tensor]:
        """Some of the rows, to their end; of several, the cache's layers are of kinds that are known, or refused."""
        heard = Heard(self.model, (*CUT_BY_ROW, *RECURRENT) if len(rows) > 1 else None)
        ids, mask = self._padded(rows)
        heard.serve(rows)
        heard.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            pad_token_id=self.fill,
            return_dict_in_generate=True,
            logits_processor=[Given([iter(self.answers[row]) for row in rows])],
        )
        self.uncut = self.uncut or heard.uncut
        return [heard.logits(row) for row in self.short if row in rows]

    def _padded(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        left = not self.model.config.is_encoder_decoder
        ids, mask = pad_batch([self.prompts[row] for row in rows], self.fill, left=left)
        return ids.to(self.model.device), mask.to(self.model.device)


def _off(got: Tensor, want: Tensor) -> float:
    """The largest difference of logits in standard deviations; infinite where either is not a number."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    finite = want.isfinite()
    if not finite.any() or not torch.equal(finite, got.isfinite()):
        return float("inf")
    return float((got - want)[finite].abs().max() / want[finite].std())
