"""Matches module names against PEFT's regular expressions when a stranger wrote them.

Python's `re` backtracks, so a short pattern can run for years. Here a parsed pattern is run on *sets* of
positions, where nothing is tried twice (lazy or greedy is all one: only whether it matches counts), and the
steps are counted: a pattern that needs too many is refused, on every machine the same one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from hilora.errors import AdapterError

V = TypeVar("V")
MAX_LENGTH = 1024
_PLAIN = re.compile(r"[\w.-]+")
_CLASSES = {"DIGIT": re.compile(r"\d"), "SPACE": re.compile(r"\s"), "WORD": re.compile(r"\w")}
# The parser of `re` itself, so that patterns mean what they mean to PEFT; it has no public name.
_parser = importlib.import_module("re._parser")


class Matcher:
    """Matches names within one allowance of steps.

    Args:
        steps: how many pattern nodes may be visited over all names and patterns.
    """

    def __init__(self, steps: int = 400_000) -> None:
        self.steps = steps
        self._parsed: dict[tuple[str, str], Any] = {}

    def fullmatch(self, pattern: str, name: str) -> bool:
        """Whether `re.fullmatch(pattern, name)` would match, as PEFT asks for `target_modules`.

        Raises:
            AdapterError: the pattern is invalid, unsupported, too long or too costly.
        """
        return len(name) in self._run(self._parse(pattern, pattern), name)

    def value(self, patterns: Mapping[str, V] | None, name: str, default: V) -> V:
        """Value of the first pattern that matches `name` or a dotted end of it (PEFT's `get_pattern_key`).

        Raises:
            AdapterError: as for `fullmatch`.
        """
        for pattern, value in (patterns or {}).items():
            parsed = self._parse(pattern, rf"(.*\.)?({pattern})$")
            # Plain names have nothing to backtrack over, and there may be one for each site.
            if parsed.match(name) if isinstance(parsed, re.Pattern) else self._run(parsed, name):
                return value
        return default

    def _parse(self, pattern: str, whole: str) -> Any:
        if (pattern, whole) in self._parsed:
            return self._parsed[pattern, whole]
        if len(pattern) > MAX_LENGTH:
            raise AdapterError(f"pattern {pattern[:40]!r}… has {len(pattern)} characters; at most {MAX_LENGTH}")
        try:
            if whole != pattern and _PLAIN.fullmatch(pattern):
                parsed: Any = re.compile(whole)
            else:
                parsed = _parser.parse(whole)
                if parsed.state.flags != int(re.UNICODE):
                    raise AdapterError(f"pattern {pattern[:80]!r} sets flags; write it without (?…) flags")
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            raise AdapterError(f"pattern {pattern[:80]!r} is no valid regular expression: {error}") from error
        self._parsed[pattern, whole] = parsed
        return parsed

    def _run(self, parsed: Any, name: str) -> set[int]:
        try:
            return self._ends(parsed, name, {0})
        except RecursionError as error:
            raise AdapterError("a pattern is nested too deeply; write module names instead") from error

    def _ends(self, nodes: Any, text: str, at: set[int]) -> set[int]:
        """Where `nodes`, begun at any of `at`, can end."""
        for op, arg in nodes:
            self.steps -= 1 + len(at) // 8
            if self.steps < 0:
                raise AdapterError("its patterns take too long to match; write module names, or simpler patterns")
            at = self._step(op.name, arg, text, at)
            if not at:
                break
        return at

    def _step(self, op: str, arg: Any, text: str, at: set[int]) -> set[int]:
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return {i + 1 for i in at if i < len(text) and _accepts(op, arg, text[i])}
        if op == "BRANCH":
            return set().union(*(self._ends(branch, text, at) for branch in arg[1]))
        if op == "SUBPATTERN" and not arg[1] and not arg[2]:  # 1 and 2 are flags
            return self._ends(arg[3], text, at)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, nodes = arg
            return self._repeat(low, high, nodes, text, at)
        if op in ("ASSERT", "ASSERT_NOT") and arg[0] == 1:  # lookahead
            return {i for i in at if bool(self._ends(arg[1], text, {i})) == (op == "ASSERT")}
        if op == "AT" and arg.name in _PLACES:
            return {i for i in at if _PLACES[arg.name](text, i)}
        raise AdapterError(f"a pattern uses {op.lower()}, which is not supported; write module names instead")

    def _repeat(self, low: int, high: int, nodes: Any, text: str, at: set[int]) -> set[int]:
        seen = set(at) if low == 0 else set()
        count = 0
        while at and count < high:
            at = self._ends(nodes, text, at)
            count += 1
            if count >= low:
                at = at - seen  # a place reached before has had its turns
                seen |= at
        return seen


def _accepts(op: str, arg: Any, char: str) -> bool:
    """Whether one character passes a node."""
    if op == "IN":
        negate = bool(arg[0][0].name == "NEGATE")
        return negate != any(_accepts(kind.name, item, char) for kind, item in arg[negate:])
    if op == "CATEGORY":
        kind = arg.name.removeprefix("CATEGORY_")
        return bool(bool(_CLASSES[kind.removeprefix("NOT_")].match(char)) != kind.startswith("NOT_"))
    if op == "RANGE":
        return bool(arg[0] <= ord(char) <= arg[1])
    return char != "\n" if op == "ANY" else bool((ord(char) == arg) == (op == "LITERAL"))


def _is_boundary(text: str, i: int) -> bool:
    return bool(re.compile(r"\b").match(text, i))


_PLACES = {
    "AT_BEGINNING": lambda text, i: i == 0,
    "AT_BEGINNING_STRING": lambda text, i: i == 0,
    "AT_END": lambda text, i: i == len(text),
    "AT_END_STRING": lambda text, i: i == len(text),
    "AT_BOUNDARY": _is_boundary,
}
