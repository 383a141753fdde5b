"""The outline of a text: how it begins and ends, and what signs it is made of; not what it says.

Prompts of one task are often written after one template. An outline is a fixed number of marks, each a hash of a
question about the text and its answer: its first and last 1 to `EDGE` words; numbers of digits, capitals, question
marks and so on, as steps of a logarithm; shares of the text. Steps are counted twice, half a step apart, so that
numbers that are near have a mark in common wherever a step ends. How long a text is, is left out: it tells a template
rather than a task, and misleads where prompts are worded otherwise than the samples.

What marks leak: counts of signs, and by guessing the first and last few words.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

EDGE = 4
"""Most words at either end."""
STEP = 2.0
"""Steps per unit of a natural logarithm."""
LEAST = 1e-3
"""Added to shares of a text."""
TOKEN = re.compile(r"\w+|[^\w\s]|\n")

_SIGNS = {
    "question": re.compile(r"\?"),
    "digit": re.compile(r"\d"),
    "capital": re.compile(r"[A-Z]"),
    "comma": re.compile(r"[,;]"),
    "stop": re.compile(r"\."),
    "colon": re.compile(r":"),
    "quote": re.compile(r"[\"']"),
    "bracket": re.compile(r"[()\[\]]"),
    "item": re.compile(r"- "),
    "foreign": re.compile(r"[^\x00-\x7f]"),
    "paragraph": re.compile(r"\n\n"),
}


def outline(text: str, tokens: Sequence[str] | None = None) -> NDArray[np.int32]:
    """The marks of a text: (`MARKS`,) non-negative.

    Args:
        text: what it is about.
        tokens: what `TOKEN` finds in it, if that is known.
    """
    found = TOKEN.findall(text) if tokens is None else tokens
    return np.fromiter(
        (zlib.crc32(mark.encode(errors="surrogatepass")) >> 1 for mark in _marks(text, found)), np.int32
    )


def _marks(text: str, tokens: Sequence[str]) -> Iterable[str]:
    for length in range(1, EDGE + 1):
        yield f"begins {length}: " + "\0".join(tokens[:length])
        yield f"ends {length}: " + "\0".join(tokens[-length:])
    words, lines = text.split(), text.split("\n")
    counts = {name: len(sign.findall(text)) for name, sign in _SIGNS.items()}
    yield from _steps({f"number of {name}": math.log1p(count) for name, count in counts.items()})
    shares = {name: counts[name] / (len(text) + 1) for name in ("capital", "digit")}
    shares["space"] = text.count(" ") / (len(text) + 1)
    shares["pause"] = (counts["comma"] + counts["stop"]) / (len(text) + 1)
    shares["new word"] = len(set(words)) / (len(words) + 1)
    shares["word length"] = sum(map(len, words)) / (len(words) + 1) / 10
    yield from _steps({f"share of {name}": math.log(share + LEAST) for name, share in shares.items()})
    yield f"line length: {int(STEP * math.log1p(len(text) / len(lines)))}"
    yield f"word length: {int(2 * STEP * math.log1p(sum(map(len, words)) / max(1, len(words))))}"
    yield f"first sign: {text.lstrip()[:1]}"
    yield f"last sign: {text.rstrip()[-1:]}"
    yield f"ends a line: {text.endswith(chr(10))}"


def _steps(logarithms: Mapping[str, float]) -> Iterable[str]:
    for name, value in logarithms.items():
        yield f"{name}: {math.floor(STEP * value)}"
        yield f"{name}, half a step on: {math.floor(STEP * value + 0.5)}"


MARKS = len(outline(""))
"""Marks of a text."""
