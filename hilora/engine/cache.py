"""Key-value caches of prompts that were read apart, joined, in buffers with room for what is to come.

transformers' own cache copies all keys and values for every new token, which is an eighth of a decoding step of 64
rows on a CPU. `Growing` writes new ones behind the old ones and copies only when its room is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

ROOM = 32
"""New tokens for which there is room."""
CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""What transformers calls a cache where it goes in and comes out; until version 5.23 it was past_key_values."""


class Growing(DynamicLayer):
    """A layer of a cache: (row, head, token, dim) keys and values, as views of longer buffers.

    Args:
        keys, values: what it holds.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.buffers: list[Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns all keys and values."""
        assert self.keys is not None
        assert self.values is not None
        start, stop = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self.buffers is None or stop > self.buffers[0].shape[-2]:
            self.buffers = [self._longer(each, stop + ROOM) for each in (self.keys, self.values)]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self.buffers = None

    @staticmethod
    def _longer(held: Tensor, length: int) -> Tensor:
        buffer = held.new_empty((*held.shape[:-2], length, held.shape[-1]))
        buffer[..., : held.shape[-2], :] = held
        return buffer


def can_join(model: Any) -> bool:
    """Whether a model's caches can be joined: plain keys and values in every layer."""
    if model.device.type != "cpu" or model.generation_config.cache_implementation not in (None, "dynamic"):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def join(caches: Sequence[Any]) -> Any:
    """One cache of all rows, as long as the longest; the others are padded on the left. Takes the parts apart."""
    joined, length = caches[0], max(cache.get_seq_length() for cache in caches)
    for i in range(len(joined.layers)):
        parts = [cache.layers[i] for cache in caches]
        if not parts[0].is_initialized:  # a layer that shares another one's
            continue
        whole = []
        for name in ("keys", "values"):
            own = [getattr(part, name) for part in parts]
            padded = [pad(each, (0, 0, length - each.shape[-2], 0)) for each in own]
            whole.append(padded[0] if len(padded) == 1 else torch.cat(padded))
        for cache in caches:
            cache.layers[i] = None  # so that the whole cache is in memory once, and one layer of it twice
        joined.layers[i] = Growing(whole[0], whole[1])
    return joined
