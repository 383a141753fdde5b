"""A method by its name, its options checked before anything is built."""

from __future__ import annotations

import inspect
from typing import Any

from hilora.errors import InputError, UnknownNameError
from hilora.methods.method import Method
from hilora.methods.table import METHODS

KINDS: dict[str, tuple[type, ...]] = {
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
}
"""What an option's annotation lets through; options also come from the command line."""


def get_method(name: str, **options: Any) -> Method:
    """Build a method by name.

    Raises:
        UnknownNameError: no such method, or no such option of it; suggests the nearest.
        InputError: an option's value makes no sense.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    known = inspect.signature(METHODS[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise UnknownNameError(f"option of method {name!r}:", option, known)
        kind = known[option].annotation
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise InputError(f"Option {option} of method {name!r} is a {kind}; got {value!r}.")
    return METHODS[name](**options)


def method_table() -> list[dict[str, str]]:
    """Name, options with defaults, and summary of every method."""
    return [
        {
            "name": name,
            "options": ", ".join(f"{p.name}={p.default}" for p in inspect.signature(build).parameters.values()),
            "summary": inspect.getdoc(build) or "",
        }
        for name, build in METHODS.items()
    ]
