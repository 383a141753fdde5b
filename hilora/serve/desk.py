"""Prompts in, answers out, for any number of callers at once, over a pool that changes meanwhile.

    event loop's thread   ask -> ticket, which waits for its route and then for its answers
    desk's thread         routes what has come, many prompts at once; lets those start who are next in the line
    engine's thread       steps; tells tickets what their answers say

Nobody waits outside of the line: what the engine is given starts at its next steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from hilora.engine.batching import Batching
from hilora.engine.generate import HiLoRA
from hilora.engine.teams import let_team_go
from hilora.engine.thread import TURNS
from hilora.pool.view import Entry, PoolView
from hilora.serve.asked import Ask, Caller, Looked, Why
from hilora.serve.damages import Damages
from hilora.serve.edition import Edition
from hilora.serve.faults import BusyError, ClosingError, LateError
from hilora.serve.gauges import watch
from hilora.serve.limits import Limits
from hilora.serve.line import Line, has_place
from hilora.serve.meters import Meters
from hilora.serve.routing import Routing, Started
from hilora.serve.tenants import visible
from hilora.serve.ticket import Outbox, Ticket
from hilora.serve.traffic import Traffic

TOGETHER = 32
"""Prompts that are routed at once, at most."""
MOMENT = 0.05
"""Seconds that the first of several waits for the others at most; a fifth of it for the next one."""
GROWING = ("hilora-plus", "hilora", "hilora-gs", "selection", "mixture", "fusion")
"""Methods to which a new adapter is an adapter like all others: beside uploads only these route."""


class PoolDesk:
    """Answers prompts over a pool (`asked.Desk`).

    Args:
        router: the model, and the default method over the pool.
        limits: how much at once.
        methods: that may be asked for beside it.
        meters: counts what happens.
        log_prompts: prompts and answers are written to the log.
    """

    def __init__(
        self,
        router: HiLoRA,
        limits: Limits,
        methods: Sequence[str] = GROWING,
        meters: Meters | None = None,
        *,
        log_prompts: bool = False,
    ) -> None:
        self.limits, self.meters, self.traffic = limits, meters or Meters(), Traffic()
        default = router.planner.method.name
        self.methods: Sequence[str] = tuple(dict.fromkeys([default, *methods]))
        self.opened = int(time.time())
        self.edition = Edition(router)
        self.engine = router.lanes.engine
        self.width = limits.running if router.batching is Batching.OPEN else TURNS
        self.engine.loop.most = limits.running
        self.damages = Damages()
        counted = self.meters, self.traffic
        self._routing = Routing(self.methods, limits, *counted, self._ended, self.damages, log_prompts=log_prompts)
        self._turn = threading.Condition()
        self._outbox: Outbox | None = None
        self._new: list[Ticket] = []
        self._line: Line[Started] = Line()
        self._running: set[Started] = set()
        self._tickets: set[Ticket] = set()
        self.closing = self._closed = False
        watch(self.meters, self, limits.running)
        self._thread = threading.Thread(target=self._work, name="hilora desk", daemon=True)
        self._thread.start()

    def visible(self, caller: Caller) -> Sequence[Entry]:
        """The adapters that a caller may name, under the names that he knows them by."""
        return visible(self.edition.view, caller)

    async def answer(self, ask: Ask) -> Ticket:
        """Route a prompt and have it answered; returns once it is routed."""
        return await self._ticket(ask, only_route=False)

    async def route(self, ask: Ask) -> Why:
        """The same without an answer."""
        ticket = await self._ticket(ask, only_route=True)
        await ticket.close()
        return ticket.why

    async def look(self, ask: Ask) -> tuple[Why, Looked]:
        """The same with the answer that is given, whose tokens are looked at."""
        ticket = await self._ticket(ask, only_route=False)
        (found,) = [event async for event in ticket]
        return ticket.why, found

    async def _ticket(self, ask: Ask, *, only_route: bool) -> Ticket:
        loop = asyncio.get_running_loop()
        with self._turn:
            if self.closing:
                raise ClosingError("The server is shutting down. Ask another one, or come again.", "shutting_down")
            self._check_place(ask.caller.tenant)
            if self._outbox is None or self._outbox.loop is not loop:
                self._outbox = Outbox(loop)
            ticket = Ticket(ask, self._outbox, self.limits.deadline, self._give_up, only_route=only_route)
            self._tickets.add(ticket)
            self._new.append(ticket)
            self._turn.notify_all()
        self.meters.came(ask)
        try:
            await ticket.wait_routed()
        except LateError:
            self.meters.refused("deadline")
            raise
        return ticket

    def _check_place(self, tenant: str) -> None:
        running = {each.ticket for each in self._running}
        waiting = [each.ask.caller.tenant for each in self._tickets if each not in running]
        if not has_place(waiting, tenant, self.limits.waiting + self._free):
            self.meters.refused("queue_full")
            seconds = self.meters.typical_seconds * len(waiting) / self.width  # until those who wait now have started
            message = f"{len(waiting)} requests are waiting already. Come again."
            raise BusyError(message, max(1.0, seconds), "queue_full")

    def change(self, view: PoolView) -> None:
        """Route over another view of the pool from now on; what is routed already keeps its own."""
        self.edition = self.damages.over(self.edition, view)

    def look_for_mended(self) -> bool:
        """See which damaged files have been mended; whether the pool has to be looked at anew (`change`)."""
        self.damages.look()
        return self.damages.are_new(self.edition.view)

    def close(self, seconds: float) -> None:
        """Take nothing new, let what is there end for so long, then end it."""
        with self._turn:
            self.closing = True
            self._turn.wait_for(lambda: not self._tickets, seconds)
            left = list(self._tickets)
            self._closed = True
            self._turn.notify_all()
        for ticket in left:
            ticket.tell(ClosingError("The server is shutting down.", "shutting_down"))
            self._give_up(ticket)
        self._thread.join()

    def _give_up(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket any more, or all of it is there."""
        ticket.cancelled = True
        with self._turn:
            self._tickets.discard(ticket)
            if ticket in self._new:
                self._new.remove(ticket)
            started: Started | None = ticket.work
            runs = started is not None and not self._line.drop(started) and started in self._running
            self._turn.notify_all()
        if started is not None and runs:  # the engine tells of ends under its own lock, so it is not asked under ours
            taken = self.engine.give_up(set(started.works))
            for work in set(started.works) - taken:
                self._ended(started, work)

    @property
    def _free(self) -> int:
        """How many answers more the model's steps take."""
        return max(0, self.width - sum(len(each.works) for each in self._running))

    @property
    def _may_start(self) -> bool:
        return bool(self._line) and self._free > 0

    def _work(self) -> None:
        while True:
            let_team_go()
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._new or self._may_start)
                self._gather()
                if self._closed:
                    return
                new, self._new = self._new[:TOGETHER], self._new[TOGETHER:]
                edition = self.edition
            if new:
                routed = self._routing(edition, new)
                with self._turn:
                    for started in routed:
                        if not started.ticket.cancelled:
                            started.ticket.work = started
                            self._line.put(started, started.ticket.ask.caller.tenant, started.first)
            self._start()

    def _gather(self) -> None:
        """Wait a moment for others that come just now: together they are routed, read and laid out in one go."""
        end, count = time.monotonic() + MOMENT, 0
        while count < len(self._new) < TOGETHER and time.monotonic() < end and not self._closed:
            count = len(self._new)
            self._turn.wait(MOMENT / 5)

    def _start(self) -> None:
        works = []
        with self._turn:
            while self._may_start:
                started = self._line.pop()
                started.since = time.perf_counter()
                self._running.add(started)
                works += started.works
                self.meters.began(started.ticket.began)
        if works:
            self.engine.submit(works)

    def _ended(self, started: Started, work: Any) -> None:
        """One of a ticket's works has ended; called in the engine's thread."""
        with self._turn:
            started.ended.add(work)
            if started.ended >= set(started.works):
                self._running.discard(started)
                if not started.ticket.cancelled:
                    self.meters.worked(time.perf_counter() - started.since)
            self._turn.notify_all()

    @property
    def waiting(self) -> int:
        """Requests that have not started."""
        with self._turn:
            return len(self._new) + len(self._line)

    @property
    def running(self) -> int:
        """Requests that share the model's steps."""
        with self._turn:
            return len(self._running)

    @property
    def at_work(self) -> tuple[list[str], list[str]]:
        """Names of adapters of requests that run, and of those that wait."""
        with self._turn:
            groups = list(self._running), list(self._line)
        running, waiting = ([name for each in group for name in each.names] for group in groups)
        return running, waiting
