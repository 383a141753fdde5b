"""What the rows of all calls share: the model's engine, the bank of adapters, and what answers are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import psutil
import torch
from torch import Tensor

from hilora.base.answers import Answer, Ends
from hilora.base.modules import check_placed, placements
from hilora.base.padding import pad_batch
from hilora.base.prompts import pad_id
from hilora.base.rows import Order, orders, rows_apart
from hilora.engine.bank import Bank
from hilora.engine.batch import Batch, refusal
from hilora.engine.batching import Batching, ServeRows
from hilora.engine.call import Call
from hilora.engine.compiled.bank import FixedBank
from hilora.engine.compiled.options import Compile
from hilora.engine.last_token import LastToken
from hilora.engine.loop import Loop
from hilora.engine.pick import Pick
from hilora.engine.plans import RowPlan
from hilora.engine.probe import batching_of
from hilora.engine.rectangle import Rectangle
from hilora.engine.request import Request
from hilora.engine.thread import engine_of
from hilora.errors import InputError, ModelError
from hilora.planner import Planner, Routed
from hilora.pool.memory import Memory, parse_bytes
from hilora.types import Choice, Completion


class Lanes:
    """The rows of all calls of one `HiLoRA`.

    Args:
        model, tokenizer, planner, memory: its own.
        form, packed: how deltas are worked out.
        kv_memory: bytes for keys and values of all prompts at once, as for `parse_bytes`; one budget for a model,
            whoever asks; default: half of what is free when it is first asked for, on each device.
        compile: which steps are compiled.

    Raises:
        ModelError: the model's embedding is on no device.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        planner: Planner,
        memory: Memory,
        *,
        form: str,
        packed: bool,
        kv_memory: int | str | None = None,
        compile: Compile | None = None,
    ) -> None:
        self.model, self.tokenizer, self.planner = model, tokenizer, planner
        check_placed(model)
        places = placements(model)
        self.fill = pad_id(tokenizer)
        self.engine = engine_of(model, self.fill)
        if planner.method.needs_base:
            planner.base = LastToken(model, tokenizer, self.engine)
        if kv_memory is not None or self.engine.loop.memory == float("inf"):
            self.engine.loop.memory = spare_memory(places) if kv_memory is None else parse_bytes(kv_memory)
        self.bank = Bank(model, planner.method.gate, places, memory, form, packed)
        self.compile, self.fixed = compile, None if compile is None else self._fixed(compile, memory, packed)
        self._batching: Batching | None = None

    def over(self, planner: Planner) -> Lanes:
        """The same engine, bank and budget for another planner of this composer, as over a pool that has grown."""
        other = copy(self)
        other.planner = planner
        return other

    @property
    def batching(self) -> Batching:
        """How rows may run on this base model."""
        if self._batching is None:
            with self.engine.alone():
                self._batching = batching_of(self.model, self.fill)
                orders(self.model)  # runs the model, too, the first time it is asked
                if self._batching is Batching.OPEN and not self.engine.loop.per_token:
                    token = Request([self.fill], 1, Ends(self.tokenizer, ()).read(()), Pick(), self.bank)
                    self.engine.loop.per_token = bytes_of(token, self.engine.loop)
                if self.fixed is not None:
                    self._open(self.fixed)
        return self._batching

    @property
    def banks(self) -> list[Bank]:
        """All that hold adapters."""
        return [self.bank, *filter(None, [self.fixed])]

    def bank_of(self, plan: RowPlan | None, tokens: int) -> Bank:
        """What serves a request of so many tokens in all, prompt and answer."""
        return self.fixed if self.fixed is not None and self.fixed.serves(plan, tokens) else self.bank

    def _fixed(self, compile: Compile, memory: Memory, packed: bool) -> FixedBank:
        """A bank for compiled steps."""
        gate, source = self.planner.method.gate, self.planner.source
        if gate is None:
            raise InputError(
                f"compile is for methods that use adapters; {self.planner.method.name!r} uses none. Leave it out."
            )
        if len({where for where, _ in placements(self.model).values()}) > 1:
            raise ModelError("compile needs a base model on one device. Leave it out, or load the model on one.")
        return FixedBank(self.model, gate, placements(self.model), memory, packed, source, compile)

    def _open(self, fixed: FixedBank) -> None:
        """Have room for the rows of compiled steps, out of what there is for all."""
        if self._batching is not Batching.OPEN:
            raise ModelError(
                f"compile needs a base model whose rows may join and leave at any step; on this one they run "
                f"{self._batching}. Leave it out."
            )
        fixed.open(self.fill)
        assert fixed.held is not None
        needed, loop = fixed.held.num_bytes, self.engine.loop
        if needed > loop.memory:
            raise InputError(
                f"Compiled steps of {fixed.options.rows[-1]} rows with {fixed.options.tokens[-1]} tokens take "
                f"{needed / 1e6:.4g} MB of keys and values, and all together may take {loop.memory / 1e6:.4g} MB. "
                "Raise kv_memory, or compile for fewer rows or tokens."
            )
        loop.memory -= needed

    def check_memory(self, call: Call, rows: Sequence[int]) -> None:
        """Refuse what would never fit.

        Raises:
            InputError: a prompt whose keys and values take more memory than there is for all.
        """
        loop, longest = self.engine.loop, max(len(call.encoded[row]) for row in rows)
        error = refusal(longest, int(call.options["max_new_tokens"]), loop.per_token, loop.memory)
        if error is not None:
            raise error

    def is_mixed(self, routed: Routed) -> bool:
        """Whether a module that adapters may change cannot tell the rows of a batch apart."""
        found = orders(self.model)
        return routed.route is not None and any(order is Order.MIXED for order in found.values())

    def padded(self, encoded: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (batch, seq) of prompts, as the model reads them."""
        left = not self.model.config.is_encoder_decoder
        ids, mask = pad_batch(encoded, self.fill, left=left)
        return ids.to(self.model.device), mask.to(self.model.device)

    def completion(self, call: Call, row: int, answer: Answer, why: tuple[Choice, ...]) -> Completion:
        """An answer, and why it came out as it did."""
        asked, note = len(call.encoded[row]), call.routed.notes[row]
        return Completion(
            answer.text, answer.finish_reason, why, self.planner.method.name, asked, answer.tokens, note
        )

    def planned(
        self, routed: Routed, rows: Sequence[int], seed: int
    ) -> tuple[ServeRows, list[tuple[Choice, ...]], bool]:
        """What makes the model serve some of these rows, each row's choices, and whether they must run one by one."""
        if routed.route is None:
            return lambda places: nullcontext(), [() for _ in rows], False
        plan = self.planner.plan(routed, rows, seed)
        sites = self.bank.sites_of(plan, routed.source)
        return (
            self.bank.bind(sites, plan),
            self.planner.choices(routed, rows, plan),
            rows_apart(self.model, sites, plan),
        )


@torch.inference_mode()
def bytes_of(one: Request, loop: Loop) -> int:
    """How many bytes the keys and values of a token take, found out by reading one, while nothing runs; the largest
    layer's counted twice."""
    batch = Batch([one], Rectangle(loop.layers, (1, 1)))
    batch.held.open(1)
    loop.forward(batch, [one.ids[:1]])
    return batch.held.num_bytes + max(int(layer.num_bytes) for layer in batch.held.cache.layers)


def spare_memory(places: Mapping[str, tuple[torch.device, torch.dtype]]) -> int:
    """Bytes of which every device gets half of what is free there at most, shared out as a model's modules are.

    Args:
        places: where they compute.
    """
    counts = Counter(where for where, _ in places.values())
    return min(_free(where) // 2 * counts.total() // count for where, count in counts.items())


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
