"""Sampling whose draws belong to the prompt, not to the batch.

transformers draws a whole batch from one global stream, so that a row's answer depends on its neighbours.
Adding Gumbel noise to the warped log-probabilities and taking the largest is the same distribution; here the
noise of each row is a function of seed, prompt and position, so that an answer can be had again in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hilora.base.models import first_line
from hilora.base.prompts import check_whole
from hilora.engine.kernels.gumbel import gumbel_rows
from hilora.engine.pick import Process
from hilora.errors import InputError, UnknownNameError

_WARPERS: dict[str, Any] = {
    "temperature": lambda value: TemperatureLogitsWarper(float(value)),
    "top_h": TopHLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
"""Generation options that shape the distribution, in the order in which transformers applies them."""
SAMPLING = frozenset(_WARPERS)
"""Their names."""

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
_NEUTRAL |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_BEAMS = {"length_penalty", "early_stopping"}
_ELSEWHERE = {
    "max_length": "It counts the prompt, too, which differs from row to row. Give max_new_tokens.",
    "min_length": "It counts the prompt, too, which differs from row to row. Give min_new_tokens.",
    "compile_config": 'What transformers compiles knows no adapters. Make the HiLoRA with compile="step".',
    "return_dict_in_generate": "Answers come as completions. Leave it out.",
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        "Answers come as completions, which hold no tensors. Leave it out.",
    ),
}
"""Options of transformers that mean nothing here, and what to do."""


class SeededSampling(LogitsProcessor):
    """Turns the greedy choice into a draw: warp the scores, add each row's own Gumbel noise (`kernels.gumbel`).

    Args:
        keys: of each row's draws.
        options: temperature, top_k, top_p, min_p, ... (`SAMPLING`).

    Raises:
        InputError: one of them makes no sense.
    """

    def __init__(self, keys: Sequence[int], **options: Any) -> None:
        self.keys, self.start = keys, 0  # where the answers begin
        self.warpers = warpers_of(options)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary) whose largest entry is a sample."""
        warped = torch.log_softmax(self.warpers(cast("Any", input_ids), cast("Any", scores.float())), dim=-1)
        positions = [input_ids.shape[1] - self.start] * len(self.keys)
        return warped + gumbel_rows(self.keys, positions, scores.shape[1], scores.device)


class Unpadded(LogitsProcessor):
    """Applies to each row what reads its tokens, without the padding before them.

    Args:
        processes: what is applied.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes, self.pads = processes, [0]  # padding before each prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary), a row after the other; several rows of a prompt lie side by side."""
        copies, rows = len(scores) // len(self.pads), []
        for row in range(len(scores)):
            ids, found = input_ids[row : row + 1, self.pads[row // copies] :], scores[row : row + 1]
            for process in self.processes:
                found = process(ids, found)
            rows.append(found)
        return torch.cat(rows)


def warpers_of(options: dict[str, Any]) -> LogitsProcessorList:
    """What these options do to the scores.

    Raises:
        InputError: one of them makes no sense.
    """
    given = {name: options.get(name) for name in _WARPERS}
    found, name = LogitsProcessorList(), ""
    try:
        for name, value in given.items():
            if value is not None and value != _NEUTRAL.get(name):
                found.append(_warper(name, value))
    except (TypeError, ValueError) as error:
        raise InputError(f"The sampling option {name}={given[name]!r} makes no sense: {first_line(error)}") from error
    return found


@lru_cache(maxsize=1024, typed=True)
def _warper(name: str, value: Any) -> Any:
    """One for all rows of the same value, which are warped together where that saves launches (`pick`)."""
    return _WARPERS[name](value)


def is_sampled(options: Mapping[str, Any], defaults: Any) -> bool:
    """Whether tokens are drawn: as asked for, else as the model's generation config says; never at temperature 0."""
    asked = options.get("do_sample")
    if asked is None:
        return bool(getattr(defaults, "do_sample", False)) and options.get("temperature") != 0
    return bool(asked)


def split_sampling(options: dict[str, Any], defaults: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Options for transformers, and those for `SeededSampling`, None when the choice is greedy.

    Args:
        options: generation options as the caller gave them.
        defaults: the model's generation config.
    """
    options, draws = dict(options), is_sampled(options, defaults)
    given = {name: options.pop(name, getattr(defaults, name, None)) for name in _WARPERS}
    options.pop("do_sample", None)
    return options, given if draws else None


def how_many(name: str, options: Mapping[str, Any], defaults: Any) -> int:
    """How many beams or answers: as asked for, else as the model's generation config says, else one.

    Args:
        name: "num_beams" or "num_return_sequences".
        options: generation options as the caller gave them.
        defaults: the model's generation config.
    """
    number: int = options.get(name) or getattr(defaults, name, None) or 1
    return number


def check_request(stops: Sequence[str], options: dict[str, Any], model: Any, **numbers: int) -> None:
    """Refuse generation options that transformers does not have, that do not go together, or that would do nothing.

    Args:
        stops: texts that end an answer.
        options: for transformers.
        model: whose generation config says what is not given.
        numbers: must be at least 1, by their names.

    Raises:
        UnknownNameError: no such option; suggests the nearest.
        InputError: a number below 1, an empty stop text, sampling with beams, whose draws could not be kept apart by
            prompt, or an option without what it needs to have an effect.
    """
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1; got {number}.")
    _check_stops(stops)
    known = {name for name in GenerationConfig().to_dict() if name[0] != "_" and name != "transformers_version"}
    known |= {"streamer", "logits_processor", "stopping_criteria"}
    for name, value in options.items():
        if name not in known:
            raise UnknownNameError("generation option", name, known)
        if name in _ELSEWHERE and value is not None and value is not False:
            raise InputError(f"{name} has no effect here. {_ELSEWHERE[name]}")
    _check_tokens(options, numbers["max_new_tokens"])
    _check_sampling(options, model.generation_config)
    beams = how_many("num_beams", options, model.generation_config)
    for name in _BEAMS & options.keys():
        if beams == 1 and options[name] is not None:
            raise InputError(f"{name} has no effect without beams. Add num_beams, or leave it out.")


def _check_stops(stops: Sequence[Any]) -> None:
    for stop in stops:
        if not isinstance(stop, str):
            raise InputError(f"A stop text must be a text; got {stop!r:.80}.")
        if not stop:
            raise InputError("A stop text is empty, and would end every answer before it begins. Leave it out.")
        check_whole(stop, "A stop text")


def _check_tokens(options: dict[str, Any], most: int) -> None:
    """Refuse end tokens that are none, and a least length that is none or above the most."""
    ends = options.get("eos_token_id")
    listed = ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in listed):
        raise InputError(f"eos_token_id must be a token's number, or a list of them; got {ends!r:.80}.")
    least = options.get("min_new_tokens") or 0
    if not isinstance(least, int) or not 0 <= least <= most:
        raise InputError(f"min_new_tokens must be between 0 and max_new_tokens={most}; got {least!r}.")


def _check_sampling(options: dict[str, Any], defaults: Any) -> None:
    """Refuse sampling options without sampling, sampling with beams, and values that make no sense."""
    given = {name: options[name] for name in _WARPERS if options.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (int, float)) or math.isnan(value):
            raise InputError(f"The sampling option {name} must be a number; got {value!r}.")
    if given.get("temperature", 0) < 0:
        raise InputError(f"temperature must be above 0, or 0 for the likeliest token; got {given['temperature']}.")
    if not is_sampled(options, defaults):
        for name, value in given.items():
            if value != (0 if name == "temperature" else _NEUTRAL.get(name)):
                raise InputError(
                    f"{name}={value} has no effect without sampling. Add do_sample=True, or leave it out."
                )
        return
    if how_many("num_beams", options, defaults) > 1:
        raise InputError("Sampling and beams do not go together here: choose do_sample or num_beams.")
    if given.get("temperature") == 0:
        raise InputError("temperature=0 takes the likeliest token, do_sample=True draws one: leave one of them out.")
    warpers_of(given)


def check_one_answer(options: dict[str, Any], model: Any) -> None:
    """Refuse to stream what cannot be: several answers, or beams, of which the best is known at the end.

    Raises:
        InputError: which option to leave out.
    """
    for name in ("num_return_sequences", "num_beams"):
        number = how_many(name, options, model.generation_config)
        if number != 1:
            raise InputError(f"A stream gives one answer as it comes, and {name} is {number}. Leave it out, or 1.")
