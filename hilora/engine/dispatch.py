"""Which way a call's rows go: they join others step by step, or run whole as a batch of their own.

*Joining*: bases of the class "open" (`engine.batching`), with options whose effect on a row depends on that row alone
(`engine.asked`). *Closed*: everything else, by transformers' own generation, batch after batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hilora.engine.asked import can_join
from hilora.engine.batching import Batching
from hilora.engine.call import Call
from hilora.engine.closed import run_whole
from hilora.engine.joining import join_rows
from hilora.engine.lanes import Lanes
from hilora.types import Completion


def answers(lanes: Lanes, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
    """(row, its completions) as they end; texts of a call that somebody follows in between.

    Args:
        lanes: whose rows they are.
        call: what is asked.
        rows: which of its rows.
        at_once: how many share a forward pass at most.
    """
    asked = [row for row in rows if row not in call.routed.silent]
    for row in rows:
        if row in call.routed.silent:
            note, read = call.routed.notes[row], len(call.encoded[row])
            silent = Completion("", "abstain", (), lanes.planner.method.name, read, 0, note)
            yield row, [silent] * call.copies
    if not asked:
        return
    is_open = joins(lanes, call)
    if is_open:
        lanes.check_memory(call, asked)
        lanes.engine.loop.most = max(at_once * call.copies, lanes.engine.loop.most)
    lane = join_rows if is_open else run_whole
    yield from lane(lanes, call, asked, at_once)


def joins(lanes: Lanes, call: Call) -> bool:
    """Whether a call's rows go to the joining lane."""
    return (
        lanes.batching is Batching.OPEN
        and can_join(call.options, lanes.model.generation_config)
        and not lanes.is_mixed(call.routed)
    )
