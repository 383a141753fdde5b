"""Prompts -> compositions, for any number of callers at once, over a pool that changes meanwhile.

    event loop's thread   choose(ask), which waits
    chooser's thread      embeds and routes what has come since its last turn, many prompts at once

No base model is needed. What is routed keeps the view of the pool that it was routed over.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hilora.base.embed import Embedder
from hilora.engine.teams import let_team_go
from hilora.gateway.parts import EVERYTHING, Made, Part, Room, check_method, criterion_of, parts_of
from hilora.gateway.planners import Maker, Planners, Way
from hilora.methods.lookup import get_method
from hilora.methods.method import Method
from hilora.planner import Planner, Routed
from hilora.pool.memory import Memory
from hilora.pool.reading import DamagedError
from hilora.pool.view import Entry, PoolView
from hilora.serve.asked import BASE, Ask, Caller, Why
from hilora.serve.damages import Damages
from hilora.serve.faults import BusyError, ClosingError, ServiceError
from hilora.serve.routed import alike, route
from hilora.serve.tenants import visible
from hilora.serve.why import told_of, used
from hilora.types import Choice

TOGETHER = 32
"""Prompts that are routed at once, at most."""
LEFT_OUT = "adapters left out, for which the server has no room: {}"
NOTHING_FITS = "No adapter of this prompt fits the server's limit on ranks."


@dataclass(frozen=True)
class Chosen:
    """How a prompt is to be served.

    Attributes:
        parts: its adapters, ordered by content hash; none where the base model answers alone.
        criterion: by which ROCs are chosen, where any are (`compose.rocs.CRITERIA`).
        why: for whoever asked; its prompt_tokens are not known here.
        silent: nothing is to be answered: no adapter fits, and the method abstains.
        source: gives the factors of the parts, by their content.
        seconds: that choosing took, waiting for its turn counted.
    """

    parts: tuple[Part, ...]
    criterion: str
    why: Why
    silent: bool
    source: Made
    seconds: float


@dataclass(eq=False)
class _Waiting:
    ask: Ask
    came: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Chosen]

    def tell(self, found: Chosen | Exception) -> None:
        """From any thread."""

        def put() -> None:
            if self.future.done():
                return  # nobody waits any more
            if isinstance(found, Exception):
                self.future.set_exception(found)
            else:
                self.future.set_result(found)

        self.loop.call_soon_threadsafe(put)


class Chooser:
    """Chooses.

    Args:
        view: the pool.
        embedder: its own; default: loaded here.
        method, options: the default.
        methods: that requests may name beside it.
        check: refuses methods that cannot be served (`parts.check_method`).
        room: what a prompt's adapters have to fit in; the least likely are left out, and its note says so.
        waiting: prompts that may wait; more are refused.
        memory: where adapters that a method makes are kept.

    Raises:
        InputError: a method cannot be served.
        PoolError: the pool cannot be read.
    """

    def __init__(
        self,
        view: PoolView,
        method: str,
        options: dict[str, object] | None = None,
        methods: Sequence[str] = (),
        *,
        embedder: Embedder | None = None,
        check: Callable[[Method], Method] = check_method,
        room: Room = EVERYTHING,
        waiting: int = 256,
        memory: Memory | None = None,
    ) -> None:
        self.methods: Sequence[str] = tuple(dict.fromkeys([method, *methods]))
        self.waiting, self.room, self.damages = waiting, room, Damages()
        self.opened = int(time.time())
        for name in self.methods:
            check(get_method(name, **(options or {} if name == method else {})))
        embedder = embedder or view.embedder.load(view.path)
        self.maker = Maker(method, dict(options or {}), check, embedder, memory or Memory())
        self._planners = Planners(view, self.maker)
        self._turn = threading.Condition()
        self._new: list[_Waiting] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hilora chooser", daemon=True)
        self._thread.start()

    @property
    def view(self) -> PoolView:
        """The pool as it is now."""
        return self._planners.view

    def visible(self, caller: Caller) -> Sequence[Entry]:
        """The adapters that a caller may name, under the names that he knows them by."""
        return visible(self.view, caller)

    async def choose(self, ask: Ask) -> Chosen:
        """Choose for one prompt.

        Raises:
            ServiceError: too many wait; the method is not served; an adapter is missing, disabled or damaged.
            InputError: the prompt cannot be routed.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ask, time.perf_counter(), loop, loop.create_future())
        with self._turn:
            if self._closed:
                raise ClosingError("The server is shutting down. Ask another one, or come again.", "shutting_down")
            if len(self._new) >= self.waiting:
                raise BusyError(f"{len(self._new)} prompts wait to be routed already. Come again.", 1.0, "queue_full")
            self._new.append(waiting)
            self._turn.notify()
        try:
            return await waiting.future
        finally:
            with self._turn:
                if waiting in self._new:  # nobody waits any more
                    self._new.remove(waiting)

    def change(self, view: PoolView) -> None:
        """Route over another view of the pool from now on."""
        self._planners = self.damages.renewed(lambda found: Planners(found, self.maker, self._planners), view)

    def look_for_mended(self) -> bool:
        """See which damaged files have been mended; whether the pool has to be looked at anew (`change`)."""
        self.damages.look()
        return self.damages.are_new(self.view)

    def close(self) -> None:
        """Choose no more."""
        with self._turn:
            self._closed = True
            left, self._new = self._new, []
            self._turn.notify()
        for each in left:
            each.tell(ClosingError("The server is shutting down.", "shutting_down"))
        self._thread.join()

    def _work(self) -> None:
        while True:
            let_team_go()
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._new)
                if self._closed:
                    return
                new, self._new = self._new[:TOGETHER], self._new[TOGETHER:]
                over = self._planners
            self.damages.look()
            for group in alike(new, lambda each: each.ask):
                self._choose(over, group)

    def _choose(self, over: Planners, group: Sequence[_Waiting]) -> None:
        """Tell some what is chosen for them; what is wrong with one is its own affair."""
        try:
            way, routed = self._routed(over, [each.ask for each in group])
        except Exception as error:  # noqa: BLE001  # one of them is at fault: which?
            if len(group) == 1:
                group[0].tell(error)
                return
            for each in group:
                self._choose(over, [each])
            return
        for row, each in enumerate(group):
            try:
                each.tell(self._chosen(over.view, way.planner, routed, row, each))
            except Exception as error:  # noqa: BLE001  # it is told
                each.tell(error)

    def _routed(self, over: Planners, asks: Sequence[Ask]) -> tuple[Way, Routed]:
        while True:
            try:
                found = route(over.view, asks, self.methods, self.damages, over.default, over.way)
                self.damages.check(over.view, used(over.view, found[1]))
                return found[0], self._fitted(found[1])
            except DamagedError as error:  # without it, then
                if not self.damages.note(error):
                    raise

    def _fitted(self, routed: Routed) -> Routed:
        """Routes within what there is room for."""
        if routed.route is None or self.room == EVERYTHING:
            return routed
        fitted, left = self.room.within(routed.route, [entry.rank for entry in routed.source.entries])
        notes = list(routed.notes)
        for row, count in enumerate(left):
            if count:
                has_any = bool((fitted.weights[row] > 0).any())
                notes[row] = " ".join(filter(None, (notes[row], LEFT_OUT.format(count)))) if has_any else NOTHING_FITS
        return replace(routed, route=fitted, notes=notes)

    def _chosen(self, view: PoolView, planner: Planner, routed: Routed, row: int, waiting: _Waiting) -> Chosen:
        ask, method = waiting.ask, planner.method
        parts: tuple[Part, ...] = ()
        choices: Sequence[Choice] = ()
        if routed.notes[row].startswith(NOTHING_FITS):  # not the base model in silence
            raise ServiceError(routed.notes[row], "adapter_too_large", "model")
        if routed.route is not None:
            plan = planner.plan(routed, [row], ask.seed)
            (choices,) = planner.choices(routed, [row], plan)
            parts = parts_of(method, routed.source, plan)
        name = BASE if ask.model == BASE else method.name
        why = told_of(view, ask.caller, name, choices, routed.notes[row], 0, planner.epoch)
        source = Made(view, planner.source)
        return Chosen(
            parts, criterion_of(method), why, row in routed.silent, source, time.perf_counter() - waiting.came
        )
