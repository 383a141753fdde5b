"""The adapters in use, side by side in memory, and the rows of any calls under plans of them.

    slots      0     1     2     3          an adapter that comes takes the slot of one of its shape that no row uses
    adapter    a7..  19..  c2..  -          any more, so that one adapter's factors are copied, and nothing is rebuilt
    row 0      .5    .3    .     .          what each row uses, slot by slot: a plan
    row 1      .     .     1     .

Only where no such slot is left are all laid out anew, with some room.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any

from hilora.compose.delta import Gate
from hilora.compose.stack import stack_sites
from hilora.engine.attachment import FORMS
from hilora.engine.batching import ServeRows
from hilora.engine.plans import RowPlan, one_plan
from hilora.engine.request import Request
from hilora.engine.slots import Placements, Shape, Slots, shape_of
from hilora.pool.memory import Memory, num_bytes
from hilora.pool.view import Source
from hilora.types import Factors, Plan, Site

BOUND = 4
"""Plans that stay bound: of those who are reading, and of those who are not."""
IDLE = 8
"""Unless others come, too, slots stay while one in so many is in use."""
SPARE = 4
"""Where adapters come while others are in use, one slot in so many is left free for others like them."""


class Bank:
    """The adapters in use, and what makes a model serve requests with them.

    Args:
        model: the model.
        gate: the composer.
        placements: where its modules compute (`base.modules.placements`).
        memory: keeps factors, and stacks of batches that run whole.
        form, packed: how deltas are worked out.
    """

    def __init__(
        self,
        model: Any,
        gate: Gate | None,
        placements: Placements,
        memory: Memory,
        form: str,
        packed: bool,
    ) -> None:
        self.model, self.gate, self.placements = model, gate, placements
        self.memory, self.form, self.packed = memory, form, packed
        self.fixed: Any = None
        self.pins: Counter[str] = Counter()  # adapters of requests that have begun
        self.slots: Slots | None = None
        self._sources: dict[str, Source] = {}
        self._bound: OrderedDict[tuple[RowPlan | None, ...], ServeRows] = OrderedDict()
        self._open, self._opened = ExitStack(), ()
        self._checked = False  # whether the model is still the one in which adapters were laid out
        self._lock = threading.Lock()

    def begin(self, request: Request) -> None:
        """A request takes steps from now on; its adapters stay."""
        contents = request.plan.contents if request.plan else ()
        with self._lock:
            self.memory.use(contents, {*self.pins, *(self.slots.of if self.slots else ())})
            self.pins.update(contents)

    def end(self, request: Request) -> None:
        """It takes no more."""
        with self._lock:
            self.pins -= Counter(request.plan.contents if request.plan else ())

    @contextmanager
    def __call__(self, requests: Sequence[Request]) -> Iterator[None]:
        """The model under the plans of some requests, row by row; it stays so until others come, or `close`."""
        rows: Any = tuple(request.plan for request in requests)
        if not any(row is not None and row.contents for row in rows):
            rows = ()
        if rows != self._opened:
            self._shut()
            if rows:
                self._open.enter_context(self._serving(rows)(range(len(rows))))
            self._opened = rows
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The model as it is by itself; others may change it now."""
        self._shut()
        self._checked = False

    def _shut(self) -> None:
        self._open.close()
        self._opened = ()

    def drop(self) -> None:
        """Keep nothing laid out, either."""
        self.close()
        self._bound.clear()
        self.slots = None

    def _serving(self, rows: tuple[RowPlan | None, ...]) -> ServeRows:
        if rows not in self._bound:
            slots = self._lay_out({c: row.source for row in rows if row is not None for c in row.contents})
            for row in filter(None, rows):
                for content, at in zip(row.contents, row.ids, strict=True):
                    slots.ids[slots.of[content]] = at
            assert self.gate is not None
            self._bound[rows] = slots.form.bind(one_plan(rows, slots.of, slots.ids), self.gate)
            while len(self._bound) > BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(rows)
        return self._bound[rows]

    def _lay_out(self, needed: Mapping[str, Source]) -> Slots:
        """Slots that hold these adapters, and all others that are in use."""
        known = self.slots.of if self.slots else {}
        self._sources |= needed
        new = {content: self._factors(content) for content in needed if content not in known}
        stays = {content for content in known if self.pins[content] or content in needed}
        if self.slots and not self._checked and not self.slots.form.intact:
            self.slots = None
        slots, self._checked = self.slots, True
        if slots and (2 if new else IDLE) * (len(stays) + len(new)) >= len(slots.shapes):
            gone = slots.fill(new, stays)
            if gone is not None:
                self._forget(gone)
                for content in needed:
                    slots.of.move_to_end(content)
                self._sources = {content: self._sources[content] for content in slots.of}
                return slots
        held = {} if self.slots is None else {content: self.slots.factors(content) for content in stays - set(new)}
        all_of = {c: new.get(c) or held.get(c) or self._factors(c) for c in sorted(stays | set(new))}
        self.slots = self._laid_out(all_of, bool(stays - set(needed)))
        self._bound.clear()
        self._sources = {content: self._sources[content] for content in all_of}
        return self.slots

    def _laid_out(self, adapters: Mapping[str, Factors], grows: bool) -> Slots:
        """Adapters laid out from nothing, with some room for others if more are coming."""
        assert self.gate is not None
        spare: dict[str, int] = {}
        if grows and self.gate.joinable:  # other gates know no slot without an adapter
            alike: dict[Shape, list[str]] = {}
            for content, factors in adapters.items():
                alike.setdefault(shape_of(factors), []).append(content)
            spare = {contents[0]: -(-len(contents) // SPARE) for contents in alike.values()}
        return Slots(self.model, self.form, self.packed, adapters, spare, self.placements)

    def _forget(self, contents: Set[str]) -> None:
        """Drop what is bound to these adapters."""
        for rows in list(self._bound):
            if any(row is not None and not contents.isdisjoint(row.contents) for row in rows):
                del self._bound[rows]

    def sites_of(self, plan: Plan, source: Source) -> dict[str, Site]:
        """The adapters of a plan of one source, stacked site by site; kept for the next batch that uses the same."""
        contents = [source.entries[i].hash for i in plan.ids]
        key = f"stack {' '.join(contents)}"
        self.memory.use(contents, contents if key in self.memory else ())
        return self.memory.get(
            key,
            lambda: stack_sites([self._load(content, source) for content in contents], self.placements),
            stack=True,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the adapters that are laid out, and of the room for others."""
        slots = self.slots
        return 0 if slots is None else num_bytes(slots.form.sites)

    def bind(self, sites: Mapping[str, Site], plan: Plan) -> ServeRows:
        """What makes the model serve some of a plan's rows."""
        assert self.gate is not None
        return FORMS[self.form](self.model, sites, self.packed).bind(plan, self.gate)

    def _factors(self, content: str) -> Factors:
        return self._load(content, self._sources[content])

    def _load(self, content: str, source: Source) -> Factors:
        return self.memory.get(content, lambda: source.factors(content))
