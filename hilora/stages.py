"""Generation in stages: rows that have ended leave the batch, so that short answers do not wait for long ones.

A batch of mixed prompts has answers of 1 and of 60 tokens; transformers computes every row until the last one ends.
Here generation pauses after 8, 16, 32, ... tokens, and goes on with the rows that have not ended and their part of
the key-value cache. A row's answer does not depend on its batch, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hilora.sampling import SeededSampling

FIRST = 8
"""Tokens of the first stage; each later one is as long as all before it."""
PLAIN = {"max_new_tokens", "min_new_tokens", "pad_token_id", "stop_strings", "tokenizer", "logits_processor"}
"""Options that mean the same in stages."""
Serve = Callable[[Sequence[int]], AbstractContextManager[object]]


def can_stage(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether these options, and this kind of model, may be served in stages."""
    own = all(isinstance(each, SeededSampling) for each in options.get("logits_processor", ()))
    beams = getattr(model.generation_config, "num_beams", 1) or 1
    return own and options.keys() <= PLAIN and beams == 1 and not model.config.is_encoder_decoder


def generate_staged(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    options: Mapping[str, Any],
    serve: Serve,
    ended: Callable[[list[int]], bool],
) -> Tensor:
    """New tokens of every row, padded on the right: (row, at most max_new_tokens).

    Args:
        model: a decoder, in evaluation mode.
        ids, mask: prompts, padded on the left.
        options: for `generate`, all of them in `PLAIN`.
        serve: makes the model serve some of the rows, in that order, while it is open.
        ended: whether a row with these new tokens has ended.
    """
    options = dict(options)
    most, least = options.pop("max_new_tokens"), options.pop("min_new_tokens", None) or 0
    out = torch.full((len(ids), most), options["pad_token_id"], device=ids.device)
    live, done, cache = list(range(len(ids))), 0, None
    while True:
        count = min(max(done, FIRST), most - done)
        with serve(live):
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=min(count, max(0, least - done)) or None,
                return_dict_in_generate=True,
                **options,
            )
        new = found.sequences[:, ids.shape[1] :]
        out[live, done : done + new.shape[1]] = new
        done += new.shape[1]
        if new.shape[1] < count or done == most:  # all have ended, or may not go on
            return out[:, :done]
        keep = [place for place, row in enumerate(live) if not ended(out[row, :done].tolist())]
        if not keep:
            return out[:, :done]
        index = torch.tensor(keep, device=ids.device)
        ids, cache = found.sequences[index], found.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(mask), count)], dim=1)[index]
        if len(keep) < len(live):
            cache.batch_select_indices(index)
            live = [live[place] for place in keep]
            for processor in options.get("logits_processor", ()):
                processor.streams = [processor.streams[place] for place in keep]
