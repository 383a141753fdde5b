"""Tickets -> what the engine does for them: many prompts are routed at once, and each fails by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hilora.base.prompts import encode_prompts
from hilora.engine.call import Call
from hilora.engine.lanes import Lanes
from hilora.engine.sampling import check_request, is_sampled
from hilora.engine.thread import Work
from hilora.planner import Routed
from hilora.pool.reading import DamagedError
from hilora.serve.answers import Answers
from hilora.serve.asked import Done, Piece, Why
from hilora.serve.damages import Damages
from hilora.serve.edition import Edition
from hilora.serve.journal import LOG
from hilora.serve.limits import Limits
from hilora.serve.looks import Look
from hilora.serve.meters import Meters
from hilora.serve.room import room
from hilora.serve.routed import alike, route
from hilora.serve.tenants import outer
from hilora.serve.ticket import Ticket
from hilora.serve.traffic import Traffic
from hilora.serve.why import PRIVATE, public_name, used, why_of


@dataclass(eq=False)
class Started:
    """A ticket with what the engine does for it."""

    ticket: Ticket
    works: list[Work]
    first: str  # content hash of its best adapter; "" for the base model
    names: Sequence[str] = ()  # of its adapters that are everybody's
    ended: set[Any] = field(default_factory=set)
    since: float = 0.0  # when it left the line, by `time.perf_counter`


class Routing:
    """Routes tickets.

    Args:
        methods: that may be asked for, the default first.
        limits: of requests.
        meters, traffic: count what happens.
        ended: called in the engine's thread with what was started and one of its works, when that has ended.
        damages: knows the files that are damaged.
        log_prompts: prompts and answers are written to the log.
    """

    def __init__(
        self,
        methods: Sequence[str],
        limits: Limits,
        meters: Meters,
        traffic: Traffic,
        ended: Callable[[Started, Any], None],
        damages: Damages,
        *,
        log_prompts: bool,
    ) -> None:
        self.methods, self.limits, self.ended, self.log_prompts = methods, limits, ended, log_prompts
        self.meters, self.traffic, self.damages = meters, traffic, damages

    def __call__(self, edition: Edition, tickets: Sequence[Ticket]) -> list[Started]:
        """Route tickets, and tell each how it is served, or why it is not; those that go on."""
        self.damages.look()
        found = []
        for group in alike(tickets, lambda ticket: ticket.ask):
            try:
                found += self._route(edition, group)
            except Exception as error:  # noqa: BLE001  # one of them is at fault: which?
                if len(group) == 1:
                    group[0].tell(error)
                    self.meters.failed(error)
                    continue
                for ticket in group:
                    found += self(edition, [ticket])
        return found

    def _route(self, edition: Edition, group: Sequence[Ticket]) -> list[Started]:
        began = time.perf_counter()
        while True:
            try:
                lanes, routed = self._routed(edition, group)
                self.damages.check(edition.view, used(edition.view, routed))
                break
            except DamagedError as error:  # without it, then
                if not self.damages.note(error):
                    raise
        self.meters.selected(time.perf_counter() - began, len(group))
        return [
            one for row, ticket in enumerate(group) for one in self._prepared(edition, lanes, routed, row, ticket)
        ]

    def _routed(self, edition: Edition, group: Sequence[Ticket]) -> tuple[Lanes, Routed]:
        """Tickets that go one way, routed."""
        asks = [ticket.ask for ticket in group]
        return route(edition.view, asks, self.methods, self.damages, edition.router.lanes, edition.lanes)

    def _prepared(self, edition: Edition, lanes: Lanes, routed: Routed, row: int, ticket: Ticket) -> list[Started]:
        """One ticket's own part; what is wrong with it is its own affair."""
        try:
            return self._prepare(edition, lanes, routed, row, ticket)
        except Exception as error:  # noqa: BLE001  # it is told
            ticket.tell(error)
            self.meters.failed(error)
            return []

    def _prepare(self, edition: Edition, lanes: Lanes, routed: Routed, row: int, ticket: Ticket) -> list[Started]:
        ask, view = ticket.ask, edition.view
        if ask.raw and isinstance(ask.prompt, str):
            ids = list(lanes.tokenizer(ask.prompt)["input_ids"])
        else:
            (ids,) = encode_prompts([ask.prompt], lanes.tokenizer)
        options: dict[str, Any] = dict(ask.sampling)
        most = room(lanes, len(ids), ask.max_new_tokens, self.limits.new_tokens)
        defaults = lanes.model.generation_config
        sampled = is_sampled(options, defaults)
        if sampled and ask.answers > 1:
            options["num_return_sequences"] = ask.answers
        check_request(list(ask.stops), options, lanes.model, max_new_tokens=most, batch_size=1)
        call = Call(routed, {row: ids}, ask.seed, list(ask.stops), options | {"max_new_tokens": most})
        if row in routed.silent and ask.answer is None:
            ticket.tell_routed(why_of(edition, lanes, routed, row, (), len(ids), ticket))
            for number in range(ask.answers):
                ticket.tell(Done(number, "", "abstain", 0))
            return []
        copies = 1 if sampled else ask.answers
        started = Started(ticket, [], "")
        if ask.answer is not None:
            seen = Look(
                lanes,
                routed,
                row,
                ids,
                ask,
                most=self.limits.looked,
                called=lambda choice: outer(view, ask.caller, choice).name,
                tell=ticket.tell,
                on_end=partial(self.ended, started),
            )
            return self._goes_on(started, seen, why_of(edition, lanes, routed, row, seen.choices, len(ids), ticket))
        answers = Answers(
            lanes,
            call,
            row,
            copies=copies,
            top=ask.top_logprobs,
            follow=ask.follow,
            tell=self._told(ticket),
            on_end=partial(self.ended, started),
        )
        if answers.is_open:
            lanes.check_memory(call, [row])
        why = why_of(edition, lanes, routed, row, answers.choices, len(ids), ticket)
        names = [public_name(view, choice) for choice in answers.choices]
        self.meters.routed(why, names)
        if not ticket.only_route:
            self.traffic.count(ask.caller, why.hashes)
        started.names = [name for name in names if name != PRIVATE]
        return self._goes_on(started, answers, why)

    def _goes_on(self, started: Started, made: Answers | Look, why: Why) -> list[Started]:
        """A ticket that is told how it is served; what goes on of it."""
        started.works, started.first = made.works, next(iter(why.hashes), "")
        started.ticket.tell_routed(why)
        return [] if started.ticket.only_route else [started]

    def _told(self, ticket: Ticket) -> Callable[[Piece | Done | BaseException], None]:
        """What takes a ticket's events: they are counted, and written down where that is wanted."""
        first: list[float] = []
        if self.log_prompts:
            LOG.info("prompt", extra={"prompt": ticket.ask.prompt})

        def tell(event: Piece | Done | BaseException) -> None:
            if isinstance(event, DamagedError):
                self.damages.note(event)
            if isinstance(event, BaseException):
                self.meters.failed(event)
            elif isinstance(event, Done):
                began = first[0] if first else None
                self.meters.answered(ticket.began, began, event.completion_tokens, event.finish_reason)
                if self.log_prompts:
                    LOG.info("answer", extra={"answer": event.text})
            elif not first:
                first.append(time.perf_counter())
            ticket.tell(event)

        return tell
