"""Which rows of a batch may run together, and a batch run so.

A padded row in a batch answers as the row does alone only if the base model lets it; and it may leave the batch
before the others only if every layer's cache can be cut by row. `engine.probe` finds out of which class a base is.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hilora.engine.ended import RowEnds, When
from hilora.engine.stages import Serve, generate_staged


class Batching(StrEnum):
    """What rows of different lengths may do on a base model."""

    OPEN = "open"  # rows are padded, and may leave at any step (`stages`)
    CLOSED = "closed"  # rows are padded, start together and stay until the last one ends
    ALONE = "alone"  # padding, or other rows, would change an answer: each row runs by itself


def generate_rows(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    options: Mapping[str, Any],
    serve: Serve,
    ending: RowEnds | When,
    batching: Batching,
) -> Tensor:
    """New tokens of every row, padded on the right.

    Args:
        model: in evaluation mode.
        ids, mask: prompts, padded; (row, seq).
        options: for `generate`; those of OPEN are such as `stages.can_stage` takes.
        serve: makes the model serve some of the rows, in that order, while it is open.
        ending: says which rows have ended, and where answers begin.
        batching: how rows may run.

    Returns:
        (row, new), or (row * num_return_sequences, new).
    """
    if batching is Batching.OPEN:
        return generate_staged(model, ids, mask, options, serve, ending)
    if batching is Batching.CLOSED:
        with serve(range(len(ids))):
            return _new(model, ids, mask, options, ending)
    ending.in_place = False  # each row is the first of its batch
    samplers = [each for each in options.get("logits_processor", ()) if hasattr(each, "streams")]
    streams, parts = [sampler.streams for sampler in samplers], []
    for row in range(len(ids)):
        for sampler, own in zip(samplers, streams, strict=True):
            sampler.streams = [own[row]]
        alone = ids[row : row + 1, mask[row].bool()]
        with serve([row]):
            parts.append(_new(model, alone, torch.ones_like(alone), options, ending))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1]), value=options["pad_token_id"]) for part in parts])


def _new(model: Any, ids: Tensor, mask: Tensor, options: Mapping[str, Any], ending: RowEnds | When) -> Tensor:
    """New tokens of a batch by transformers' own generation; an encoder-decoder's are behind its start token."""
    ending.start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    criteria = {"stopping_criteria": ending.criteria} if ending.criteria else {}
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **criteria, **options)
    return out[:, ending.start :]
