"""The joining lane: a request for each answer, which shares the model's steps with all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hilora.engine.asked import pick_of
from hilora.engine.call import Call
from hilora.engine.ended import row_ends
from hilora.engine.lanes import Lanes
from hilora.engine.pick import draw_key
from hilora.engine.plans import row_plans
from hilora.engine.request import Request
from hilora.engine.sampling import split_sampling
from hilora.engine.thread import Work, drive
from hilora.types import Choice


def join_rows(lanes: Lanes, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
    """(row, its completions) as they end; texts of a call that somebody follows in between.

    Args:
        lanes: whose rows they are.
        call: what is asked.
        rows: which of its rows, none of which stays unanswered.
        at_once: prompts that are under way together, at most.
    """
    of: dict[Request, tuple[int, tuple[Choice, ...], list[Request]]] = {}  # of those that have not ended

    def works() -> Iterator[Work]:
        for start in range(0, len(rows), at_once):
            for row, choices, requests in requests_of(lanes, call, rows[start : start + at_once]):
                of.update(dict.fromkeys(requests, (row, choices, requests)))
                yield from requests

    for event in drive(lanes.engine, works(), at_once * call.copies, call.events):
        if not isinstance(event, Request):
            yield event
            continue
        row, choices, requests = of.pop(event)
        if of.keys().isdisjoint(requests):
            yield row, [lanes.completion(call, row, each.says.answer(), choices) for each in requests]


def requests_of(
    lanes: Lanes, call: Call, rows: Sequence[int]
) -> Iterator[tuple[int, tuple[Choice, ...], list[Request]]]:
    """Each row with why it is served as it is, and a request for each of its answers, for `Engine.submit`."""
    routed, defaults = call.routed, lanes.model.generation_config
    options, sampling = split_sampling(dict(call.options), defaults)
    ending = row_ends(lanes.model, lanes.tokenizer, call.stops, options, 0)
    plans: list[Any] = [None] * len(rows)
    choices: list[tuple[Choice, ...]] = [()] * len(rows)
    if routed.route is not None:
        plan = lanes.planner.plan(routed, rows, call.seed)
        plans, choices = row_plans(plan, routed.source), lanes.planner.choices(routed, rows, plan)
    most = call.options["max_new_tokens"]
    banks = [lanes.bank_of(plan, len(call.encoded[row]) + most) for row, plan in zip(rows, plans, strict=True)]
    for bank, plan in zip(banks, plans, strict=True):
        bank.expect([plan])
    pick, see = pick_of(call.options, defaults, sampling, sorted(ending.ends.tokens)), call.see
    for row, plan, why, bank in zip(rows, plans, choices, banks, strict=True):
        keys = [draw_key(call.seed, routed.texts[row], answer) for answer in range(call.copies)]
        yield (
            row,
            why,
            [
                Request(
                    call.encoded[row],
                    most,
                    ending.ends.read(()),
                    replace(pick, key=key),
                    bank,
                    plan,
                    on_token=None if see is None else lambda request: see(request.says),
                )
                for key in keys
            ],
        )
