"""Which rows of a batch may run together, and batches that nobody can join, run so.

A padded row in a batch answers as the row does alone only if the base model lets it; and it may join and leave others
only if every layer's cache can be cut by row. `engine.probe` finds out of which class a base is. Rows that may come
and go take their steps in `engine.loop`; all else runs whole, by transformers' own generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hilora.engine.ended import RowEnds
from hilora.engine.sampling import SeededSampling


class Batching(StrEnum):
    """What rows of different lengths may do on a base model."""

    OPEN = "open"  # rows are padded, join and leave at any step
    CLOSED = "closed"  # rows are padded, start together and stay until the last one ends
    ALONE = "alone"  # padding, or other rows, would change an answer: each row runs by itself


ServeRows = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Places of rows -> the model serving these rows, in that order, while it is open."""


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
    criteria = {"stopping_criteria": ending.criteria} if ending.criteria else {}
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **criteria, **options)
    return out[:, ending.start :]
