"""Sampling whose draws belong to the prompt, not to the batch.

transformers draws a whole batch from one global stream, so that a row's answer depends on its neighbours.
Adding Gumbel noise to the warped log-probabilities and taking the largest is the same distribution; here the
noise of each row comes from a stream keyed by (seed, prompt), so that an answer can be had again in any batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hilora.base.models import first_line
from hilora.errors import InputError, UnknownNameError

_WARPERS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
"""Generation options that shape the distribution, in the order in which transformers applies them."""

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}


class SeededSampling(LogitsProcessor):
    """Turns the greedy choice into a draw: warp the scores, add each row's own Gumbel noise.

    Args:
        streams: one random stream per row of the batch.
        options: temperature, top_k, top_p, min_p.
    """

    def __init__(self, streams: Sequence[np.random.Generator], **options: Any) -> None:
        self.streams = streams
        active = {name: value for name, value in options.items() if value not in (None, _NEUTRAL[name])}
        try:
            self.warpers = LogitsProcessorList([_WARPERS[name](active[name]) for name in _WARPERS if name in active])
        except ValueError as error:
            raise InputError(f"A sampling option makes no sense: {first_line(error)}") from error

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary) whose largest entry is a sample."""
        warped = torch.log_softmax(self.warpers(cast("Any", input_ids), cast("Any", scores.float())), dim=-1)
        noise = np.stack([stream.gumbel(size=scores.shape[1]) for stream in self.streams])
        return warped + torch.from_numpy(noise).to(warped)


def split_sampling(options: dict[str, Any], defaults: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Options for transformers, and those for `SeededSampling`, None when the choice is greedy.

    Args:
        options: generation options as the caller gave them.
        defaults: the model's generation config.
    """
    options = dict(options)
    given = {name: options.pop(name, getattr(defaults, name, None)) for name in _WARPERS}
    if not options.pop("do_sample", getattr(defaults, "do_sample", False)):
        return options, None
    return options, given


def check_request(stops: Sequence[str], options: dict[str, Any], **numbers: int) -> None:
    """Refuse generation options that transformers does not have, or that do not go together.

    Args:
        stops: texts that end an answer.
        options: for transformers.
        numbers: must be at least 1, by their names.

    Raises:
        UnknownNameError: no such option; suggests the nearest.
        InputError: a number below 1, an empty stop text, or sampling with beams, whose draws could not be kept apart
            by prompt.
    """
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1; got {number}.")
    if "" in stops:
        raise InputError("A stop text is empty, and would end every answer before it begins. Leave it out.")
    known = {*GenerationConfig().to_dict(), "streamer", "logits_processor", "stopping_criteria"}
    for name in options:
        if name not in known:
            raise UnknownNameError("generation option", name, known)
    if options.get("do_sample") and (options.get("num_beams") or 1) > 1:
        raise InputError("Sampling and beams do not go together here: choose do_sample or num_beams.")


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """A stream's pieces up to the first stop text; what may become one is held back until it is clear."""
    held, stopped = "", False
    for piece in pieces:
        if stopped:
            continue  # the model ends its step; what comes after a stop text is no part of the answer
        held += piece
        cut = min((held.find(stop) for stop in stops if stop in held), default=None)
        if cut is not None:
            held, stopped = held[:cut], True
        hold = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        ready = held if stopped else held[: len(held) - hold]
        held = held[len(ready) :]
        if ready:
            yield ready
    if held:
        yield held
