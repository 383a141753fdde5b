"""Which user messages of a chat are routed on: the last, and where that says too little those before it.

"yes, go on" fits no adapter; with the message that it follows it fits that one's. A message of another task must not
be mixed with what was there before, however short it is. Chosen by `reproduce/selection/turns.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

SHORT = 8
"""Most words of a message that is not routed on alone."""
LETTERS = 6
"""Characters that it may have for each of these words: an unbroken string has few words, and is a task of its own."""
NUMBERS = 1
"""Most numbers in it: a sum is a task of its own, too."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")  # Thai, Lao, Burmese, Khmer, Japanese and Chinese
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Size(NamedTuple):
    """How much a message says; in scripts that put no spaces between words, each character is a word."""

    words: int
    characters: int
    numbers: int


def size_of(text: str) -> Size:
    """How much a message says."""
    return Size(len(_WORDS.findall(text)), len(text.strip()), len(_NUMBER.findall(text)))


def num_routed_on(said: Sequence[Size], short: int = SHORT) -> int:
    """How many of the last user messages are routed on: back to one that is not short, or all of them.

    Args:
        said: sizes of the user messages, at least one.
        short: most words of a short one.
    """
    count = 1
    while count < len(said) and _is_short(said[-count], short):
        count += 1
    return count


def _is_short(size: Size, short: int) -> bool:
    return size.words <= short and size.characters <= LETTERS * short and size.numbers <= NUMBERS
