"""The closed lane: a batch that nobody joins, run by transformers' own generation, in turns with everybody else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hilora.base.models import first_line
from hilora.engine.asked import padding_blind
from hilora.engine.batching import Batching, ServeRows
from hilora.engine.call import Call
from hilora.engine.ended import RowEnds, row_ends
from hilora.engine.job import Job, Shared
from hilora.engine.lanes import Lanes
from hilora.engine.pick import draw_key
from hilora.engine.sampling import SeededSampling, Unpadded, split_sampling
from hilora.engine.thread import Work, drive
from hilora.errors import InputError
from hilora.types import Completion


def run_whole(lanes: Lanes, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
    """(row, its completions) as batches end; texts of a call that somebody follows in between.

    Args:
        lanes: whose rows they are.
        call: what is asked.
        rows: which of its rows, none of which stays unanswered.
        at_once: prompts of a batch.
    """
    found: dict[Job, list[tuple[int, list[Completion]]]] = {}

    def works() -> Iterator[Work]:
        for start in range(0, len(rows), at_once):
            yield job_of(lanes, call, rows[start : start + at_once], found)

    for event in drive(lanes.engine, works(), 1, call.events):
        if isinstance(event, Job):
            yield from found.pop(event)
        else:
            yield event


def job_of(
    lanes: Lanes, call: Call, rows: Sequence[int], found: dict[Job, list[tuple[int, list[Completion]]]]
) -> Job:
    """A batch, for `Engine.submit`; what it answers is `found` under it when it has ended.

    Args:
        lanes, call: as above.
        rows: which of its rows, all in one batch.
        found: takes (row, its completions).
    """

    def run(job: Job) -> None:
        found[job] = _batch(lanes, call, rows, job)

    return Job(run)


def _batch(lanes: Lanes, call: Call, rows: Sequence[int], job: Job) -> list[tuple[int, list[Completion]]]:
    """Answers of one batch; in the engine's thread."""
    ids, mask = lanes.padded([list(call.encoded[row]) for row in rows])
    kwargs, sampling = split_sampling(dict(call.options), lanes.model.generation_config)
    answers = call.copies
    if sampling is not None:
        keys = [draw_key(call.seed, call.routed.texts[r], n) for r in rows for n in range(answers)]
        kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or ()), SeededSampling(keys, **sampling)]
        if answers > 1:  # greedy search returns one answer per row, so the rows are multiplied here
            kwargs.pop("num_return_sequences")
            ids, mask = ids.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
    if blind := padding_blind(kwargs, lanes.model):
        kwargs["logits_processor"] = [Unpadded(blind), *(kwargs.get("logits_processor") or ())]
    kwargs["disable_compile"] = True  # by itself, on a GPU with a static cache: hooks that come and go are no graph
    if kwargs.get("pad_token_id") is None:
        kwargs["pad_token_id"] = lanes.fill
    ending = row_ends(lanes.model, lanes.tokenizer, call.stops, kwargs, ids.shape[1])
    copies = len(ids) // len(rows)
    serve, choices, apart = lanes.planned(call.routed, rows, call.seed)
    shared = Shared(job, lambda live: serve([place // copies for place in live]))

    def is_wanted() -> bool:  # asked at every step
        shared.between()
        return not job.cancelled

    ending.wanted, ending.see = is_wanted, call.see
    try:
        new = generate_whole(
            lanes.model,
            ids,
            mask,
            kwargs,
            shared,
            ending,
            alone=apart or lanes.batching is Batching.ALONE,
        )
    except ValueError as error:  # transformers' own checks of options that do not go together
        raise InputError(f"The generation options do not fit together: {first_line(error)}") from error
    said = [ending.answer(tokens, row) for row, tokens in enumerate(new.tolist())]
    return [
        (row, [lanes.completion(call, row, answer, why) for answer in said[p * answers : (p + 1) * answers]])
        for p, (row, why) in enumerate(zip(rows, choices, strict=True))
    ]


def generate_whole(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    options: Mapping[str, Any],
    serve: ServeRows,
    ending: RowEnds,
    *,
    alone: bool,
) -> Tensor:
    """New tokens of every row, padded on the right.

    Args:
        model: in evaluation mode.
        ids, mask: prompts, padded; (row, seq).
        options: for `generate`.
        serve: makes the model serve some of the rows.
        ending: says which rows have ended, and where answers begin.
        alone: row by row, or all together.

    Returns:
        (row, new), or (row * num_return_sequences, new).
    """
    if not alone:
        with serve(range(len(ids))):
            return _new(model, ids, mask, options, ending)
    ending.in_place = False  # each row is the first of its batch
    samplers = [each for each in options.get("logits_processor", ()) if isinstance(each, SeededSampling)]
    keys, parts = [sampler.keys for sampler in samplers], []
    for row in range(len(ids)):
        for sampler, own in zip(samplers, keys, strict=True):
            sampler.keys = [own[row]]
        one = ids[row : row + 1, mask[row].bool()]
        with serve([row]):
            parts.append(_new(model, one, torch.ones_like(one), options, ending))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1]), value=options["pad_token_id"]) for part in parts])


def _new(model: Any, ids: Tensor, mask: Tensor, options: Mapping[str, Any], ending: RowEnds) -> Tensor:
    """New tokens of a batch by transformers' own generation; an encoder-decoder's are behind its start token."""
    ending.start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    for each in options.get("logits_processor", ()):
        if isinstance(each, SeededSampling):
            each.start = ending.start
        if isinstance(each, Unpadded):
            each.pads = (1 - mask).sum(1).tolist()
    criteria = {"stopping_criteria": ending.criteria} if ending.criteria else {}
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **criteria, **options)
    return out[:, ending.start :]
