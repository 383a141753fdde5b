"""A token for each of so many rows, by a graph that is captured once and reads buffers.

    ids, held     (row,) the token that each row reads, and how many it holds: where it goes, and what it attends to
    plan          what each row uses of the adapters in their slots
    keys, values  of the rows, in places of their own (`held`)

A step that has fewer rows is filled up with such as hold nothing and use no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hilora.base.models import first_line
from hilora.engine.cache import CACHE
from hilora.engine.compiled.held import Fixed
from hilora.engine.compiled.options import Compile
from hilora.engine.compiled.structure import Group, Using, structure
from hilora.errors import ModelError
from hilora.types import Plan

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as transformers' configurations call them."""
CAPTURES = 256
"""Sizes that one process may have captured; torch's own bound is 8."""


class Step:
    """The step of so many rows, each of at most so many tokens.

    Args:
        model: in evaluation mode.
        groups: of adapters' sites.
        using: what rows use, and how many rows there are.
        fixed: keys and values.
        tokens: that a row holds at most.
        options: of compiling.
    """

    def __init__(
        self,
        model: Any,
        groups: Sequence[Group],
        using: Using,
        fixed: Fixed,
        tokens: int,
        options: Compile,
    ) -> None:
        where, rows = model.device, using.rows
        self.rows, self._using = rows, using
        with torch.inference_mode(False), torch.no_grad():
            self._model = structure(model, groups)
            self._read = torch.zeros(2, rows, dtype=torch.long, device=where)  # ids, held
            self._ids, self._held = self._read
            self._cache = fixed.cache(rows, tokens, self._held)
            self._columns = torch.arange(tokens, device=where)
        config = model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or [FULL]
        self._window: dict[str, Any] = {kind: getattr(config, "sliding_window", None) for kind in set(kinds)}
        self._is_soft = model.config._attn_implementation == "eager"
        self._dtype = model.dtype
        self._go = self._plain = self._make()
        if options.backend != "eager":
            self._go = torch.compile(self._plain, backend=options.backend, fullgraph=True, dynamic=False)
        self.is_ready = False

    def __call__(self, ids: Sequence[int], held: Sequence[int]) -> Tensor:
        """Logits (row, vocabulary), of rows that hold so many tokens and read one more; good until the next step."""
        return self._run(self._go, ids, held)

    def plainly(self, ids: Sequence[int], held: Sequence[int]) -> Tensor:
        """The same without a graph."""
        return self._run(self._plain, ids, held)

    def _run(self, go: Callable[[], Tensor], ids: Sequence[int], held: Sequence[int]) -> Tensor:
        spare = self.rows - len(ids)
        given = torch.tensor([[*ids, *[0] * spare], [*held, *[0] * spare]])
        with torch.inference_mode(False), torch.no_grad():
            self._read.copy_(given)
            return go()[: len(ids)]

    def bind(self, plan: Plan) -> None:
        """What rows use from now on."""
        self._using.write(plan)

    def compile(self) -> None:
        """Capture it.

        Raises:
            ModelError: the base model cannot be captured whole.
        """
        if self.is_ready:
            return
        first = [(each, each[:, :, 0].clone()) for layer in self._cache.layers for each in (layer.keys, layer.values)]
        try:
            with torch._dynamo.config.patch(recompile_limit=CAPTURES, accumulated_recompile_limit=CAPTURES):
                self([0], [0])
            if self._read.is_cuda:
                self._go = recorded(self._go, self._read.device)
        except Exception as error:
            why = first_line(getattr(error, "inner_exception", error))
            raise ModelError(f"The base model cannot be compiled: {why} Leave compile out, or report it.") from error
        finally:
            for each, was in first:  # of rows that are there
                each[:, :, 0] = was
        self.is_ready = True

    def _make(self) -> Callable[[], Tensor]:
        """What is captured."""

        def go() -> Tensor:
            held = self._held[:, None]
            masks = {kind: self._mask(held, kind) for kind in self._window}
            mask: Any = masks if len(masks) > 1 or SLIDING in masks else masks[FULL]
            given = {"attention_mask": mask, "position_ids": held, "use_cache": True, CACHE: self._cache}
            found: Tensor = self._model(input_ids=self._ids[:, None], **given).logits[:, -1]
            return found

        return go

    def _mask(self, held: Tensor, kind: str) -> Tensor:
        """(row, 1, 1, column): which columns a row attends to."""
        sees = self._columns <= held
        if kind == SLIDING and self._window[kind]:
            sees = sees & (self._columns > held - self._window[kind])
        mask = sees[:, None, None]
        if self._is_soft:
            return torch.zeros_like(mask, dtype=self._dtype).masked_fill(~mask, torch.finfo(self._dtype).min)
        return mask


@torch.inference_mode(False)
@torch.no_grad()
def recorded(go: Callable[[], Tensor], where: torch.device) -> Callable[[], Tensor]:
    """The same on a GPU by one launch: all kernels are recorded, with the memory that they read and write.

    Any thread may replay them, which PyTorch's own recordings ("reduce-overhead") do not let: the engine's comes and
    goes with its work. Other threads may use the card meanwhile.

    Args:
        go: reads buffers alone, waits for nothing, and has been run before.
        where: it computes.
    """
    with torch.cuda.device(where):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            go()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = go()

    def replay() -> Tensor:
        with torch.cuda.device(where):
            graph.replay()
        return found

    return replay
