"""Prompts -> compositions, for whoever drives vLLM from Python; servers route by `gateway.chooser`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilora.base.prompts import Names, Prompts
from hilora.gateway.parts import Part, check_method, criterion_of, parts_of
from hilora.planner import Planner
from hilora.types import Choice
from hilora.vllm.wire import Composition


@dataclass(frozen=True)
class Routed:
    """How a prompt is to be answered, and why."""

    composition: Composition | None  # None for the base alone
    choices: tuple[Choice, ...] = ()
    note: str = ""
    silent: bool = False  # no adapter fits, and the method abstains: the prompt is to stay unanswered


def composition_of(parts: Sequence[Part], criterion: str) -> Composition | None:
    """What parts make together; None for none."""
    return Composition(tuple(parts), criterion) if parts else None


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
        InputError: the method is no sum of a pool's adapters; else as `Planner.route`.
    """
    check_method(planner.method)
    routed = planner.route(prompts, labels=labels, allow=allow)
    found = []
    for row, note in enumerate(routed.notes):
        if routed.route is None:
            found.append(Routed(None, (), note))
            continue
        plan = planner.plan(routed, [row], seed)
        (choices,) = planner.choices(routed, [row], plan)
        parts = parts_of(planner.method, routed.source, plan)
        found.append(Routed(composition_of(parts, criterion_of(planner.method)), choices, note, row in routed.silent))
    return found
