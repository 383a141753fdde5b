"""Generation in stages: prompts are read in slices, and rows that have ended leave the batch.

A batch of mixed prompts has answers of 1 and of 60 tokens; transformers computes every row until the last one ends.
Generation pauses after 1, 9, 17, 25, 37, ... tokens, and goes on with the rows that have not ended and their part of
the key-value cache. The first pause is for reading: prompts go through the model some thousand tokens at a time, each
slice as wide as its longest prompt, since on a CPU the activations of many tokens at once do not fit into the cache.
Decoding then has all rows together. A row's answer does not depend on its batch: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hilora.engine.cache import CACHE, can_join, join
from hilora.engine.ended import RowEnds, When
from hilora.engine.sampling import SeededSampling

FIRST = 8
"""Tokens of the first stage after reading; later ones are half as long as all before them, if that is more."""
SLICE = 2048
"""Prompt tokens, padding included, that are read at once on a CPU."""
PLAIN = {"max_new_tokens", "min_new_tokens", "pad_token_id", "eos_token_id", "stop_strings", "logits_processor"}
"""Options that mean the same in stages."""
TIMED = ("forced_eos_token_id", "begin_suppress_tokens", "exponential_decay_length_penalty", "max_time")
"""What a model's generation config may set that counts from where generation begins, or to where it ends."""
Serve = Callable[[Sequence[int]], AbstractContextManager[object]]


def can_stage(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether these options, and this kind of model, may be served in stages."""
    own = all(isinstance(each, SeededSampling) for each in options.get("logits_processor", ()))
    beams = getattr(model.generation_config, "num_beams", 1) or 1
    cached = getattr(model.generation_config, "use_cache", True) is not False
    cached = cached and not any(getattr(model.generation_config, name, None) is not None for name in TIMED)
    dynamic = model.generation_config.cache_implementation in (None, "dynamic")
    return (
        own and cached and dynamic and options.keys() <= PLAIN and beams == 1 and not model.config.is_encoder_decoder
    )


def generate_staged(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    options: Mapping[str, Any],
    serve: Serve,
    ending: RowEnds | When,
) -> Tensor:
    """New tokens of every row, padded on the right: (row, at most max_new_tokens).

    Args:
        model: a decoder, in evaluation mode.
        ids, mask: prompts, padded on the left.
        options: for `generate`, all of them in `PLAIN`.
        serve: makes the model serve some of the rows, in that order, while it is open.
        ending: says which rows have ended.
    """
    options = dict(options)
    most, least = options.pop("max_new_tokens"), options.pop("min_new_tokens", None)
    least = (model.generation_config.min_new_tokens if least is None else least) or 0
    samplers = options.get("logits_processor", ())
    streams = [sampler.streams for sampler in samplers]
    out = torch.full((len(ids), most), options["pad_token_id"], device=ids.device)

    def run(rows: Sequence[int], ids: Tensor, mask: Tensor, cache: Any, done: int, count: int) -> tuple[Tensor, Any]:
        """Ids with at most `count` more tokens of these rows, and the cache to go on with."""
        for sampler, own in zip(samplers, streams, strict=True):
            sampler.streams = [own[row] for row in rows]
        ending.start = ids.shape[1] - done
        with serve(rows):
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=min(count, max(0, least - done)) or None,
                stopping_criteria=ending.criteria,
                return_dict_in_generate=True,
                **{CACHE: cache},
                **options,
            )
        return found.sequences, getattr(found, CACHE)

    joinable = can_join(model)
    slices = list(_slices(mask.sum(1).tolist())) if joinable else [(0, len(ids), ids.shape[1])]
    read = [run(range(a, b), ids[a:b, -width:], mask[a:b, -width:], None, 0, 1) for a, b, width in slices]
    found = torch.cat([ids, torch.cat([part[:, -1:] for part, _ in read])], dim=1)
    cache = join([part for _, part in read]) if joinable else read[0][1]
    live, done, count = list(range(len(ids))), 0, 1
    while True:
        new = found[:, ids.shape[1] :]
        out[live, done : done + new.shape[1]] = new
        done += new.shape[1]
        if new.shape[1] < count or done == most:  # all have ended, or may not go on
            return out[:, :done]
        keep = [place for place, row in enumerate(live) if not ending.ended(out[row, :done].tolist())]
        if not keep:
            return out[:, :done]
        index = torch.tensor(keep, device=ids.device)
        ids, mask = found[index], torch.cat([mask, mask.new_ones(len(mask), count)], dim=1)[index]
        if len(keep) < len(live):
            cache.batch_select_indices(index)
            live = [live[place] for place in keep]
        count = min(max(done // 2, FIRST), most - done)
        found, cache = run(live, ids, mask, cache, done, count)


def _slices(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first row, row after the last, width) of slices with at most `SLICE` tokens, but at least one row."""
    first, width = 0, 0
    for row, length in enumerate(lengths):
        if row > first and max(width, length) * (row + 1 - first) > SLICE:
            yield first, row, width
            first, width = row, 0
        width = max(width, length)
    yield first, len(lengths), width
