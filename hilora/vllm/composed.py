"""Plans -> compositions: what each row of a plan uses, for methods that gate adapter by adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilora.base.prompts import Names, Prompts
from hilora.compose.rocs import TopRocs
from hilora.compose.weighted import Weighted
from hilora.errors import InputError
from hilora.methods.method import Method
from hilora.planner import Planner
from hilora.pool.derived import Merged
from hilora.pool.view import Source
from hilora.types import Choice, Plan
from hilora.vllm.wire import Composition, Part


@dataclass(frozen=True)
class Routed:
    """How a prompt is to be answered, and why."""

    composition: Composition | None  # None for the base alone
    choices: tuple[Choice, ...] = ()
    note: str = ""
    silent: bool = False  # the method abstains: the prompt is to stay unanswered


def check_method(method: Method) -> None:
    """Refuse a method that does not gate adapter by adapter, or makes adapters that no pool has.

    Raises:
        InputError: it is such a method.
    """
    if method.router is not None and type(method.gate) not in (TopRocs, Weighted):
        raise InputError(
            f"The method {method.name!r} weighs adapters token by token, which is not done inside vLLM. Take one that "
            "gates each by itself, as hilora-plus, hilora, hilora-gs, mixture or selection."
        )


def compositions_of(method: Method, source: Source, plan: Plan) -> list[Composition | None]:
    """What each row uses.

    Args:
        method: of the plan.
        source: the adapters that the plan counts along.
        plan: of any rows.

    Raises:
        InputError: the method is none that can be served so.
    """
    check_method(method)
    if isinstance(source, Merged):
        raise InputError(f"The method {method.name!r} merges adapters, which is not done inside vLLM.")
    return [_row(method, source, plan, row) for row in range(len(plan.scale))]


def _row(method: Method, source: Source, plan: Plan, row: int) -> Composition | None:
    gate, found = method.gate, []
    for column, place in enumerate(plan.ids):
        rank, rocs, weight = int(plan.ranks[column]), int(plan.rocs[row, column]), float(plan.weights[row, column])
        if isinstance(gate, Weighted):
            rocs = rank if weight else 0
        elif isinstance(gate, TopRocs) and not gate.weighted:
            weight = 1.0
        if rocs and weight:
            found.append(Part(source.entries[place].hash, weight, rocs, rank))
    criterion = gate.criterion if isinstance(gate, TopRocs) else "value"
    return Composition(tuple(found), float(plan.scale[row]), criterion) if found else None


def route(
    planner: Planner, prompts: Prompts, *, seed: int = 0, labels: Sequence[str] | None = None, allow: Names = None
) -> list[Routed]:
    """Route prompts, for `params`.

    Args:
        planner: of a pool and a method.
        prompts: texts or chats.
        seed: of the draw of ROCs.
        labels: the right adapter of each prompt, for the oracle.
        allow: names of adapters to keep to, a list for all or one per prompt.

    Raises:
        InputError: the method cannot be served inside vLLM; else as `Planner.route`.
    """
    check_method(planner.method)
    routed = planner.route(prompts, labels=labels, allow=allow)
    rows = range(len(routed.texts))
    if routed.route is None:
        return [Routed(None, (), routed.notes[row]) for row in rows]
    plan = planner.plan(routed, rows, seed)
    found = compositions_of(planner.method, routed.source, plan)
    choices = planner.choices(routed, rows, plan)
    return [Routed(found[row], choices[row], routed.notes[row], row in routed.silent) for row in rows]
