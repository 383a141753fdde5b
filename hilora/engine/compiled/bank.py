"""Adapters in a fixed number of slots, and the compiled steps of the rows that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hilora.compose.delta import Gate
from hilora.engine.attachment import Fast
from hilora.engine.bank import Bank
from hilora.engine.batch import Batch
from hilora.engine.cache import CACHE
from hilora.engine.compiled.held import Fixed
from hilora.engine.compiled.options import Compile
from hilora.engine.compiled.shapes import Shapes
from hilora.engine.compiled.step import Step
from hilora.engine.compiled.structure import Group, Using
from hilora.engine.fused import has_kernels
from hilora.engine.kernels.top_rocs import by_torch, top_rocs
from hilora.engine.plans import RowPlan, one_plan
from hilora.engine.request import Request
from hilora.engine.slots import Placements, Slots
from hilora.engine.stacked import Stacked
from hilora.errors import ModelError
from hilora.pool.memory import Memory
from hilora.pool.view import Source
from hilora.types import Factors

PROBED = 4
"""Tokens that are read to see whether a step does what the model does."""
TOLERANCE = 0.1
"""Of what it gives: half precision rounds, and a wrong mask or position is far beyond."""


class FixedBank(Bank):
    """A `Bank` whose slots never change, and which takes its requests' steps by graphs captured once.

    Args:
        model, gate, placements, memory: as of `Bank`.
        packed: whether weights of modules that read one input may be laid into one block.
        source: whose adapters have slots; those of other shapes are served elsewhere.
        options: what is compiled.

    Raises:
        ModelError: there is no gate, or no adapter yet.
    """

    def __init__(
        self,
        model: Any,
        gate: Gate,
        placements: Placements,
        memory: Memory,
        packed: bool,
        source: Source,
        options: Compile,
    ) -> None:
        super().__init__(model, gate, placements, memory, "fast", packed)
        self.options, self.fixed = options, self
        self.held: Fixed | None = None
        self._steps: dict[tuple[int, int], Step] = {}
        self._sizes = list(product(options.tokens, options.rows))
        self._shapes = Shapes(self._in_memory)
        shapes = self._shapes.most(source)
        spare = dict.fromkeys(shapes.values(), options.slots - 1)
        adapters = {content: self._load(content, source) for content in shapes.values()}
        self._sources |= dict.fromkeys(adapters, source)
        self._fixed = Slots(model, "fast", packed, adapters, spare, placements, alone=True)
        self.slots = self._fixed
        self._room = Counter(self._fixed.shapes)
        self.taken = 0  # steps
        self.operation: Any = top_rocs if has_kernels(model.device) else by_torch
        self._bare = False
        self._last: tuple[RowPlan | None, ...] | None = None
        self._at: tuple[int, int] | None = None

    @property
    def sizes(self) -> int:
        """How many steps there are to compile."""
        return len(self._sizes)

    def without_sites(self) -> None:
        """Nothing of adapters is in its steps: the base model alone, for comparison. Said before anything is made."""
        self._bare = True

    @property
    def ready(self) -> list[tuple[int, int]]:
        """(rows, tokens) of the steps that are compiled."""
        return [size for size, step in self._steps.items() if step.is_ready]

    # -- which requests

    def serves(self, plan: RowPlan | None, tokens: int) -> bool:
        """Whether a request of so many tokens in all, prompt and answer, can have its steps here."""
        if tokens > self.options.tokens[-1]:
            return False
        if plan is None:
            return True
        return Counter(self._shapes.of(content, plan.source) for content in set(plan.contents)) <= self._room

    def has_room(self, requests: Sequence[Request]) -> bool:
        """Whether requests can begin together, beside those that have begun."""
        rows = len(self.held.lengths) if self.held else 0
        if rows + len(requests) > self.options.rows[-1]:
            return False
        wanted = {c for r in requests if r.plan is not None for c in r.plan.contents}
        return Counter(self._shapes.known[content] for content in {*wanted, *self.pins}) <= self._room

    # -- adapters

    def _in_memory(self, content: str, source: Source) -> Factors:
        return self._load(content, source) if self.ahead is None else self.ahead.packed(content, source)

    def drop(self) -> None:
        """Nothing is bound any more; what is laid out stays."""
        self.close()
        self._bound.clear()

    def _lay_out(self, needed: Mapping[str, Source]) -> Slots:
        slots = self._fixed
        self._sources |= needed
        new: dict[str, Factors] = {c: self._factors(c) for c in needed if c not in slots.of}
        if not self._checked and not slots.form.intact:
            raise ModelError("The model was changed after its steps were compiled. Make a new HiLoRA of it.")
        self._checked = True
        gone = slots.fill(new, {content for content in slots.of if self.pins[content] or content in needed})
        assert gone is not None, "a request began without slots for its adapters"
        self._forget(gone)
        for content in needed:
            slots.of.move_to_end(content)
        self._sources = {content: self._sources[content] for content in slots.of}
        return slots

    # -- steps

    def compile(self, on_step: Callable[[int, int], None] | None = None) -> None:
        """Capture the steps of all sizes; those that are captured already are not again.

        Args:
            on_step: called with (steps done, steps in all).

        Raises:
            ModelError: the base model cannot be captured.
        """
        for done, (tokens, rows) in enumerate(self._sizes):
            if on_step:
                on_step(done, len(self._sizes))
            self._steps[rows, tokens].compile()
        if on_step:
            on_step(len(self._sizes), len(self._sizes))

    @torch.no_grad()
    def open(self, fill: int) -> None:
        """Make room for keys and values, and see to it that steps give what the base model gives.

        Args:
            fill: a token.

        Raises:
            ModelError: they do not.
        """
        if self.held is not None:
            return
        ids = torch.full((1, PROBED), fill, device=self.model.device)
        ids[0] = torch.arange(PROBED) % self.model.config.get_text_config(decoder=True).vocab_size
        found = self.model(input_ids=ids, use_cache=True)
        like = [(layer.keys, layer.values) for layer in found[CACHE].layers]
        held, slots = Fixed(like, self.options.rows[-1], self.options.tokens[-1]), len(self._fixed.shapes)
        assert self.gate is not None
        self._lodge()
        for tokens, rows in self._sizes:  # all now: nothing is hooked to the modules that are copied
            using = Using(self.gate, rows, slots, self.model.device, self.operation)
            made = Step(self.model, self._groups(using), using, held, tokens, self.options)
            self._steps[rows, tokens] = made
        step = self._steps[self.options.rows[0], self.options.tokens[0]]
        for place, token in enumerate(ids[0].tolist()):
            logits, wanted = step.plainly([token], [place])[0].float(), found.logits[0, place].float()
            if not torch.allclose(logits, wanted, atol=TOLERANCE * float(wanted.std()), rtol=TOLERANCE):
                self._steps.clear()
                raise ModelError(
                    "A compiled step would give other answers than this base model does: its attention, or its "
                    "positions, are not as transformers' common ones. Leave compile out."
                )
        self.held = held

    def step(self, batch: Batch, ids: Sequence[int]) -> Tensor:
        """Logits (row, vocabulary) behind one more token of each row of a batch that is held here."""
        held, requests = self.held, batch.rows
        assert held is not None
        assert len(held.lengths) == len(requests) == len(ids)
        rows = next(each for each in self.options.rows if each >= len(requests))
        tokens = next(each for each in self.options.tokens if each > max(held.lengths))
        step = self._steps[rows, tokens]
        plans = (*(request.plan for request in requests), *[None] * (rows - len(requests)))
        if (plans, (rows, tokens)) != (self._last, self._at):
            step.bind(self._plan(plans))
            self._last, self._at = plans, (rows, tokens)
        self._lodge()
        step.compile()
        logits = step(ids, held.lengths)
        self.taken += 1
        held.lengths = [n + (not r.ended) for n, r in zip(held.lengths, requests, strict=True)]
        return logits

    def _plan(self, plans: Sequence[RowPlan | None]) -> Any:
        slots = self._lay_out({c: row.source for row in plans if row is not None for c in row.contents})
        for row in plans:
            for content, at in zip(row.contents, row.ids, strict=True) if row is not None else ():
                slots.ids[slots.of[content]] = at
        return one_plan(plans, slots.of, slots.ids)

    def _groups(self, using: Using) -> list[Group]:
        form = self._fixed.form
        assert isinstance(form, Fast)
        found: list[Group] = []
        for stacked, pack in form.attachment.groups if not self._bare else ():
            if pack is not None:
                found.append(Group(stacked, [], pack, using))
                continue
            for site in stacked.sites:  # they need not read the same
                found.append(Group(Stacked([site]), [self.model.get_submodule(site.name)], None, using))
        return found

    def _lodge(self) -> None:
        """Others may have put their ROCs where ours were."""
        form = self._fixed.form
        assert isinstance(form, Fast)
        for stacked, pack in form.attachment.groups:
            if pack is not None and len(stacked.rocs.owner) <= pack.spare:
                pack.lodge(stacked.rocs.down, stacked.version)
