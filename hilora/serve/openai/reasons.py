"""Why a prompt is served as it is, for the body of a response and for its headers."""

from __future__ import annotations

import hashlib
import math
from itertools import takewhile
from urllib.parse import quote

from hilora import __version__
from hilora.serve.asked import Ask, Why
from hilora.serve.openai.replies import AdapterPart, Reasons, RouteReply
from hilora.types import Choice

FEW = 20
"""Adapters that are told where reasons are not asked for; some methods use the whole pool."""
LONG = 2048
"""Characters of a header."""
SHOWN = "X-Hilora-Adapters", "X-Hilora-Method", "X-Hilora-Seed"


def reasons_of(ask: Ask, why: Why, explain: bool) -> Reasons:
    """The `hilora` field.

    Args:
        ask: what was asked.
        why: how it is served.
        explain: whether everything is told.
    """
    shown = len(why.choices) if explain else FEW
    found: Reasons = {
        "method": why.method,
        "adapters": [
            _part(choice, content, explain)
            for choice, content in zip(why.choices[:shown], why.hashes[:shown], strict=True)
        ],
        "note": why.note,
        "seed": ask.seed,
    }
    if len(why.choices) > shown:
        found["more"] = len(why.choices) - shown
    if explain:
        found |= {"epoch": why.epoch, "pool": why.pool}
    return found


def route_reply(ask: Ask, why: Why, explain: bool) -> RouteReply:
    """What a prompt that is only routed is answered with; the arguments are those of `reasons_of`."""
    reply: RouteReply = {
        "object": "hilora.route",
        "model": ask.model,
        "prompt_tokens": why.prompt_tokens,
        "system_fingerprint": fingerprint(why),
        "hilora": reasons_of(ask, why, explain),
    }
    if not why.prompt_tokens:  # no tokenizer is at hand
        del reply["prompt_tokens"]
    return reply


def headers_of(ask: Ask, why: Why) -> dict[str, str]:
    """The same in short, as headers; names are percent-encoded, and "..." stands for those that find no room."""
    names = [quote(choice.name, safe="") for choice in why.choices]
    ends = [sum(len(name) + 1 for name in names[: place + 1]) for place in range(min(len(names), LONG))]
    fit = len(list(takewhile(lambda end: end <= LONG, ends)))
    listed = ",".join(names[:fit] + ["..."] * (fit < len(names)))
    return dict(zip(SHOWN, (listed, quote(why.method, safe=""), str(ask.seed)), strict=True))


def fingerprint(why: Why) -> str:
    """OpenAI's system_fingerprint: as long as it stays the same, so do answers to the same prompt and seed."""
    told = f"{__version__}\0{why.pool}\0{why.epoch}"
    return "fp_" + hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:12]


def _part(choice: Choice, content: str, explain: bool) -> AdapterPart:
    part: AdapterPart = {"name": choice.name, "weight": _finite(choice.weight)}
    if explain:
        part |= {
            "score": _finite(choice.score),
            "rocs": choice.rocs,
            "rank": choice.rank,
            "hash": content,
            "seen": choice.seen,
        }
    return part


def _finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return value if math.isfinite(value) else None
