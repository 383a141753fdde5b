"""The joining lane: a request for each answer, which shares the model's steps with all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hilora.engine.asked import pick_of
from hilora.engine.call import Call
from hilora.engine.ended import row_ends
from hilora.engine.lanes import Lanes
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
    left: dict[int, list[Request]] = {}
    of: dict[Request, tuple[int, tuple[Choice, ...]]] = {}

    def works() -> Iterator[Work]:
        for start in range(0, len(rows), at_once):
            for row, choices, requests in _requests(lanes, call, rows[start : start + at_once]):
                left[row] = list(requests)
                for request in requests:
                    of[request] = row, choices
                    yield request

    made: dict[int, list[Request]] = {}
    for event in drive(lanes.engine, works(), at_once * call.copies, call.events):
        if not isinstance(event, Request):
            yield event
            continue
        row, choices = of.pop(event)
        made.setdefault(row, []).append(event)
        if len(made[row]) == call.copies:
            del made[row]
            yield row, [lanes.completion(call, row, r.says.answer(), choices) for r in left.pop(row)]


def _requests(
    lanes: Lanes, call: Call, rows: Sequence[int]
) -> Iterator[tuple[int, tuple[Choice, ...], list[Request]]]:
    """Each row with why it is served as it is, and a request for each of its answers."""
    routed, defaults = call.routed, lanes.model.generation_config
    options, sampling = split_sampling(dict(call.options), defaults)
    ending = row_ends(lanes.model, lanes.tokenizer, call.stops, options, 0)
    plans: list[Any] = [None] * len(rows)
    choices: list[tuple[Choice, ...]] = [()] * len(rows)
    if routed.route is not None:
        plan = lanes.planner.plan(routed, rows, call.seed)
        plans, choices = row_plans(plan, routed.source), lanes.planner.choices(routed, rows, plan)
    see = call.see
    for row, plan, why in zip(rows, plans, choices, strict=True):
        text = routed.texts[row]
        picks = [
            pick_of(call.options, defaults, sampling, sorted(ending.ends.tokens), call.seed, text, answer)
            for answer in range(call.copies)
        ]
        yield (
            row,
            why,
            [
                Request(
                    call.encoded[row],
                    call.options["max_new_tokens"],
                    ending.ends.read(()),
                    pick,
                    lanes.bank,
                    plan,
                    on_token=None if see is None else lambda request: see(request.says),
                )
                for pick in picks
            ],
        )
