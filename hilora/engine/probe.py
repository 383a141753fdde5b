"""What rows may share a batch on a base model: short rows in a small padded batch are compared with each alone.

Every new token is given, and the raw logits of each step are compared, so that no near tie decides. The batch is
first run in stages, a longer row leaving after its first token; if that gives other logits, or a cache that cannot be
cut by row, it is run to its end; if that gives other logits, too, rows run alone. They also do where a layer's cache
is of a kind that is not known here: what it keeps of a long prompt does not show in a short one.

What a base's code does to a row does not depend on its precision, and in fp32 no rounding is large enough to hide it,
or to pass for it: so a base in half precision is judged in fp32, all of its layers, with its own weights
(`base.upcast`; a shallow copy would have to know which layers a hybrid cannot do without). One that does not run so
(weights quantised or offloaded, kernels for half precision alone, no memory) is judged as it is, by a tolerance.
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

from hilora.base.models import first_line
from hilora.base.padding import pad_batch
from hilora.base.rows import BROKEN, some_tokens
from hilora.base.upcast import in_fp32, is_half
from hilora.engine.attach import carrying
from hilora.engine.batching import Batching
from hilora.engine.cache import CACHE
from hilora.engine.loop import Loop
from hilora.engine.request import Request

CUT_BY_ROW = (DynamicLayer, DynamicSlidingWindowLayer, getattr(cache_utils, "DummyLayer", DynamicLayer))
"""Layers of a cache that hold keys and values alone, row by row, or nothing."""
RECURRENT = tuple(each for name, each in vars(cache_utils).items() if name.startswith("LinearAttention"))
"""Layers that hold a state of each row, too."""
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
        with carrying(model):
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


class UnknownCache(NotImplementedError):
    """A model's cache has layers that may not run in the way that is tried."""


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
        loop, picks, serve = Loop(self.model, self.fill), [_Told(answer) for answer in self.answers], _Alone()
        loop.most = len(LENGTHS)
        asked = [
            Request(prompt, NEW if row else 1, _Endless(), pick, serve)
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
        heard = _Heard(self.model, (*CUT_BY_ROW, *RECURRENT) if len(rows) > 1 else None)
        ids, mask = self._padded(rows)
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
        self.uncut = self.uncut or heard.uncut
        return [heard.logits(row) for row in self.short if row in rows]

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


class _Told:
    """Picks given tokens, and keeps the raw logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.heard = list(tokens), list[Tensor]()

    def is_plain(self, count: int) -> bool:
        """Never: it wants to see them all."""
        return False

    def __call__(self, request: Request, logits: Tensor) -> int:
        """The next of the given ones."""
        self.heard.append(logits)
        return self.tokens[len(request.new)]


class _Alone:
    """Nothing serves but the base model."""

    def __call__(self, requests: Sequence[Request]) -> AbstractContextManager[object]:
        """The model as it is."""
        return nullcontext()

    def begin(self, request: Request) -> None:
        """Nothing to hold."""

    def end(self, request: Request) -> None:
        """Nothing to let go."""

    def close(self) -> None:
        """Nothing is open."""


class _Endless:
    """Reads an answer that nothing ends."""

    ended = False

    def feed(self, token: int) -> None:
        """Nothing to know of it."""


class _Heard:
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


def _off(got: Tensor, want: Tensor) -> float:
    """The largest difference of logits in standard deviations; infinite where either is not a number."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    finite = want.isfinite()
    if not finite.any() or not torch.equal(finite, got.isfinite()):
        return float("inf")
    return float((got - want)[finite].abs().max() / want[finite].std())
