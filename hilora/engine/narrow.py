"""A window of attention, made so small for a while that even the few tokens of a probe reach beyond it.

Some models leave their window to transformers' cache, which drops what lies behind it, and no mask of theirs says so.
The engine keeps keys and values in full (`rectangle`), so on such a base rows may not join; where the window has
thousands of tokens, nobody would see that in a short prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WINDOWS = ("sliding_window", "attention_chunk_size")
"""What configurations call it."""
NARROW = 4
"""Tokens."""


@contextmanager
def narrow(model: Any) -> Iterator[None]:
    """Meanwhile all windows of a model are `NARROW`; smaller ones, and what is none, stay."""
    configs = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    found = [(config, name, getattr(config, name, None)) for config in configs.values() for name in WINDOWS]
    wide = [each for each in found if type(each[2]) is int and each[2] > NARROW]
    for config, name, _ in wide:
        setattr(config, name, NARROW)
    try:
        yield
    finally:
        for config, name, window in wide:
            setattr(config, name, window)
