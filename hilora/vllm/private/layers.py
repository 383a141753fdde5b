"""vLLM's LoRA layers, made to add what compositions say after what they add themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hilora.errors import MismatchError
from hilora.vllm.folders import number_of
from hilora.vllm.gate import gate
from hilora.vllm.places import Grouped, Places, Row


class Wrapped:
    """Works places out by vLLM's own kernels, one wrapper of them for each place: for GPUs."""

    def __init__(self, places: Places, wrappers: Sequence[Any], max_loras: int, vocabulary: int) -> None:
        self.places, self.wrappers, self._sizes = places, wrappers, (max_loras, vocabulary)
        self._told = 0  # wrappers that hold something

    @property
    def num_places(self) -> int:
        """All, whatever the step: a captured graph is of one shape."""
        return self.places.num_places

    def fill(self, rows: Sequence[Row], numbers: Sequence[int | None], slots: Mapping[str, int]) -> None:
        """Take in the next step; see `Places.fill`."""
        from vllm.lora.layers import LoRAMapping

        self.places.fill(rows, slots)
        before, self._told = self._told, self.places.used
        for place in range(max(before, self._told)):
            mine = [c.parts[place].content if c and place < len(c.parts) else "" for c, _ in rows]
            tokens = [
                number_of(own) if own else 0 for own, (_, count) in zip(mine, rows, strict=True) for _ in range(count)
            ]
            mapping = LoRAMapping(tuple(tokens), (0,), is_prefill=True)
            self.wrappers[place].update_metadata(mapping, list(numbers), *self._sizes)

    def pretend(self, mapping: Any, numbers: Sequence[int | None]) -> None:
        """Have a step that is captured launch the kernels of all places; nothing comes of them."""
        self.places.fill([], {})
        for wrapper in self.wrappers:
            wrapper.update_metadata(mapping, list(numbers), *self._sizes)
        self._told = len(self.wrappers)

    def shrink(self, x: torch.Tensor, down: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `Grouped.shrink`."""
        z = x.new_zeros(self.num_places, len(down), len(x), down[0].shape[2], dtype=torch.float32)
        for place, wrapper in enumerate(self.wrappers):
            wrapper.add_shrink(z[place], x, tuple(down), 1.0)
        return z

    def expand(
        self, y: torch.Tensor, z: torch.Tensor, up: Sequence[torch.Tensor], widths: Sequence[int], first: int
    ) -> None:
        """See `Grouped.expand`."""
        for place, wrapper in enumerate(self.wrappers):
            wrapper.add_expand(y, z[place], tuple(up), tuple(widths), offset_start=first, add_inputs=True)


def add(layer: Any, stock: Callable[..., torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """A layer's output, with what compositions add to it."""
    from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce

    y, work = stock(x, bias), layer.hilora
    if not work.num_places:
        return y
    flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    down, up, num = layer.lora_a_stacked, layer.lora_b_stacked, len(flat)
    z = work.shrink(flat, down)
    by_input = layer.hilora_by_input and layer.tp_size > 1
    if by_input:  # each rank has a part of the sum, and all must choose by the whole
        z = tensor_model_parallel_all_reduce(z)
    elif z.shape[-1] < up[0].shape[-1]:  # each rank has some of the ROCs
        z = tensor_model_parallel_all_gather(z)
    places, of = work.places, slice(0, work.num_places)
    mine = (each[of, :num] for each in (places.slot, places.rocs, places.rank, places.factor))
    z = gate(z, layer.hilora_size, layer.hilora_count, *mine, places.criterion[:num])
    whole = up[0].shape[2] == out.shape[-1]
    if not (by_input and whole and layer.tp_rank):  # the ranks' outputs are summed: one of them adds
        work.expand(out, z, up, layer.output_slices, 0 if whole or not by_input else layer.tp_rank * up[0].shape[2])
    return y


def prepare(manager: Any, config: Any, num_places: int) -> None:
    """Have a model's LoRA layers add what compositions say.

    Args:
        manager: of its LoRAs.
        config: vLLM's, of LoRA.
        num_places: adapters of a composition, at most.

    Raises:
        MismatchError: a layer is of a kind that is not known.
    """
    from vllm.lora.layers import RowParallelLinearWithLoRA
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.punica_wrapper import get_punica_wrapper

    num = min(num_places, manager.lora_slots)
    places = Places(num, manager.max_num_batched_tokens, manager.device)
    work: Grouped | Wrapped = Grouped(places)
    if manager.device.type != "cpu":
        sizes = manager.max_num_batched_tokens, manager.max_num_seqs
        made = [
            get_punica_wrapper(sizes[0], max_batches=sizes[1], device=manager.device, lora_config=config)
            for _ in range(num)
        ]
        work = Wrapped(places, made, manager.lora_slots + 1, manager.vocab_size)
    manager.hilora = work
    for name, layer in manager.modules.items():
        if not isinstance(layer, BaseLinearLayerWithLoRA):
            continue
        packed = manager.packed_modules.get(name, [])
        if packed and len(packed) != layer.n_slices:
            raise MismatchError(f"{name} packs {len(packed)} modules into {layer.n_slices} parts; expected one each.")
        shape = layer.n_slices, manager.lora_slots
        layer.hilora, layer.hilora_by_input = work, isinstance(layer, RowParallelLinearWithLoRA)
        layer.hilora_count = torch.zeros(shape, dtype=torch.long, device=manager.device)
        layer.hilora_size = torch.zeros(*shape, config.max_lora_rank, dtype=torch.float32, device=manager.device)
        layer.apply = functools.partial(add, layer, layer.apply)


def lay(manager: Any, number: int) -> None:
    """Write down what the gates need to know of an adapter that was put into a slot."""
    slot, adapter = manager.lora_index_to_id.index(number), manager.get_adapter(number)
    for name, layer in manager.modules.items():
        if not hasattr(layer, "hilora_count"):
            continue
        weights = manager._get_lora_layer_weights(adapter, name)
        ups = [None] * layer.n_slices if weights is None else weights.lora_b
        for site, up in enumerate(ups if isinstance(ups, list) else [ups] * layer.n_slices):
            layer.hilora_count[site, slot] = 0 if up is None else up.shape[1]
            if up is not None:
                layer.hilora_size[site, slot, : up.shape[1]] = up.norm(dim=0)
