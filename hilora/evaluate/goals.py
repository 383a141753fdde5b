"""Figures beside their goals: compared as they are, and shown with as many digits as agree with the verdict."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from hilora.errors import InputError

MOST_DIGITS = 9
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "within": lambda value, most: abs(value) <= most,
}


def is_met(value: float, goal: str) -> bool:
    """Whether a figure reaches its goal, by its unrounded value.

    Args:
        value: in the goal's unit.
        goal: one of `SIGNS`, a number, and perhaps a unit: ">= 99.8 %".

    Raises:
        InputError: the goal is not of this form.
    """
    sign, number = _parts(goal)
    return SIGNS[sign](value, number)


def shown(value: float, goal: str, digits: int = 1) -> str:
    """The figure with `digits` decimals, or with as many more as it takes not to contradict the verdict."""
    for more in range(digits, MOST_DIGITS):
        if is_met(round(value, more), goal) == is_met(value, goal):
            return f"{value:.{more}f}"
    return repr(value)


def _parts(goal: str) -> tuple[str, float]:
    found = re.match(r"(>=|<=|<|>|within) ([\d.,]+)", goal)
    if found is None:
        raise InputError(f"A goal is a sign and a number, such as '>= 0.95' or 'within 0.2 %'; got {goal!r}.")
    return found[1], float(found[2].replace(",", ""))
