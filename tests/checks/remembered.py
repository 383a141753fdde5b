"""The checker of types that jaxtyping asks: beartype, whose work for a signature is done once.

jaxtyping hands over a stand-in of every function, with its name and annotations and no body. Functions inside
functions are decorated whenever the outer one runs, and to write their checks takes longer than most of the calls do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import beartype as checks

_made: dict[Hashable, Callable[..., Any]] = {}


def beartype(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    """What beartype makes of this, or made of a stand-in that was the same in everything that it reads."""
    if args or options or function.__defaults__ or function.__kwdefaults__ or function.__closure__:
        return checks.beartype(function, *args, **options)
    hints = tuple(function.__annotations__.items())
    key = (function.__code__, function.__module__, function.__qualname__, hints)
    try:
        made = _made.get(key)
    except TypeError:  # a hint that cannot be hashed
        return checks.beartype(function)
    if made is None:
        made = _made[key] = checks.beartype(function)
    return made
