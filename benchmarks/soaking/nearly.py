"""What is sent where something is odd."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

HUGE = "@huge@"
"""Stands for a number of more digits than Python writes."""
HILORA = {"method": "hilora", "options": {"k": 2}, "allow": ["alpha", "beta"], "explain": True}
SHARED: dict[str, Any] = {
    "model": "auto", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["b", "c"], "seed": 3,
    "stream": False, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "logit_bias": {}, "user": "u", "hilora": HILORA,
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "ab"},
    {"role": "user", "content": [{"type": "text", "text": "abab"}]},
    {"role": "assistant", "content": "ba"},
    {"role": "user", "content": "abba"},
]
CHAT = SHARED | {
    "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "response_format": {"type": "text"}, "tools": [],
    "metadata": {"a": "b"}, "max_completion_tokens": 3,
}  # fmt: skip
TEXT = SHARED | {"prompt": "abab", "logprobs": 2, "echo": False, "best_of": 1, "suffix": None}
ROUTE = {"model": "auto", "input": "abab", "hilora": HILORA}
BODIES: list[tuple[bytes, dict[str, Any]]] = [
    (b"/v1/chat/completions", {"model": "auto", "messages": MESSAGES[3:], "max_tokens": 3}),
    (b"/v1/completions", {"model": "auto", "prompt": "abab", "max_tokens": 3}),
    (b"/v1/chat/completions", CHAT),
    (b"/v1/completions", TEXT),
    (b"/v1/completions", TEXT | {"stream": True, "stream_options": {"include_usage": True}}),
    (b"/v1/route", ROUTE),
    (b"/v1/route", {"model": "auto", "messages": MESSAGES}),
]
METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X-Y"]
PATHS = [
    b"/", b"/v1", b"/v1/models", b"/v1/models/alpha", b"/v1/adapters", b"/v1/adapters/alphas", b"/v1/route",
    b"/v1/completions", b"/v1/chat/completions", b"/v1/load_lora_adapter", b"/metrics", b"/readyz", b"/healthz",
    b"/docs", b"/openapi.json", b"/docs/oauth2-redirect", b"//v1/models", b"/v1/../metrics", b"/V1/models",
]  # fmt: skip
TYPES = [
    b"application/json", b"application/json; charset=utf-16", b"text/plain", b"", b";", b"application/JSON;;",
    b"application/json, text/plain", b"\xff\xfe", b"multipart/form-data", b"application/x-www-form-urlencoded",
    b"application/problem+json", b"multipart/form-data; boundary=" + b"e" * 300, b"application/json; boundary=\xe9",
]  # fmt: skip


def deep(depth: int, *, lists: bool) -> Any:
    """Brackets in brackets."""
    found: Any = 1
    for _ in range(depth):
        found = [found] if lists else {"a": found}
    return found


def changed(body: dict[str, Any], rng: Random, value: Any) -> Any:
    """A body with something odd at one place, or at two.

    Args:
        value: any, as one of the odd things.
    """
    odd = [
        value, value, value, None, True, 0, -1, 0.5, 1e308, -0.0, 10**19, -(2**63), 2**31, float("nan"), float("inf"),
        HUGE, "", "\0", "\ud800", "a\udfff", "🙂", "\u2028", "auto", "base", "alpha", "hilora-plus", "nothing",
        "a" * 3000,
        [], {}, [[]], [None], ["a", 1], {"": ""}, {"type": "text"}, deep(12, lists=True), deep(20, lists=False),
        deep(900, lists=True), ["a"] * 2000, {str(key): key for key in range(2000)},
    ]  # fmt: skip
    found = deepcopy(body)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(walk(found))
        parent, key = rng.choice(places)
        act = rng.randrange(6)
        if act == 0:
            del parent[key]
        elif act == 1 and isinstance(parent, dict):
            parent[rng.choice(["", "\0", "\ud800", key.upper(), f"{key}s", "__class__", "hilora"])] = deepcopy(
                rng.choice(odd)
            )
        elif act == 2:
            parent[key] = [parent[key]]
        else:
            parent[key] = deepcopy(rng.choice(odd))
    return found


def walk(body: Any) -> list[tuple[Any, Any]]:
    """Every place of a body: what holds it, and the key there; at least one."""
    keys = list(body) if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else []
    here = [(body, key) for key in keys]
    inner = [place for key in keys for place in (walk(body[key]) if isinstance(body[key], (dict, list)) else [])]
    return here + inner or [({"": None}, "")]


def written(body: Any) -> bytes:
    """As JSON, or nearly: with numbers that are too long."""
    return json.dumps(body).replace(json.dumps(HUGE), "9" * 6000).encode()


def form(files: dict[str, bytes], rng: Random, number: int) -> tuple[bytes, bytes]:
    """A form with something odd: its content type, and its body."""
    edge = rng.choice([b"edge", b"edge", b"e" * 70, b"--", b"a b"])
    kind = b"multipart/form-data; boundary=" + rng.choice([edge, edge, edge, b'"' + edge + b'"', b"", edge + b"x"])
    kind = rng.choice([kind, kind, kind, b"multipart/mixed; boundary=" + edge, b"multipart/form-data"])
    fields = [(name.encode(), content) for name, content in files.items()]
    if rng.random() < 0.1:  # others are refused for that at the latest: a check takes seconds
        fields.append((b"name", b"n%d" % number))
    act, place = rng.randrange(12), rng.randrange(len(fields))
    name, content = fields[place]
    if act == 0:
        fields.append((name, content))
    elif act == 1:
        del fields[place]
    elif act == 2:
        fields[place] = (
            rng.choice([b"", b"x" * 10_000, b'a"; filename="b', b"a\r\nX: b", b"\0", b"\xff", b"../a"]),
            content,
        )
    elif act == 3:
        fields[place] = (name, rng.randbytes(rng.randrange(200)))
    elif act == 4:
        inner = b"--edge\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--edge--\r\n"
        fields[place] = (name, inner)
    elif act == 5:
        fields += [(b"x%d" % i, b"") for i in range(40)]
    elif act == 6:
        fields[-1] = (b"name", rng.choice([b"", b"a/b", b"\0", b"x" * 127, b"..", "é".encode(), b"auto", b"\xff"]))
    elif act == 7:
        at = rng.randrange(1 + len(content))
        fields[place] = (name, content[:at] + rng.randbytes(5) + content[at + 5 :])
    extra = rng.choice([b"", b"", b"Content-Type: a\r\n", b"X: " + b"y" * 5000 + b"\r\n", b":\r\n"])
    opening = b"--" + edge + b'\r\nContent-Disposition: form-data; filename="f"; name="'
    parts = [opening + field + b'"\r\n' + extra + b"\r\n" + data for field, data in fields]
    body = b"\r\n".join([*parts, b"--" + edge + b"--\r\n"])
    odd = {
        8: body[: rng.randrange(len(body))],
        9: body.replace(b"\r\n", b"\n"),
        10: rng.randbytes(100) + body + rng.randbytes(100),
        11: rng.choice([b"", b"--edge--", b"--edge--\r\n", b"\r\n--edge\r\n\r\n", b"-" * 1000]),
    }
    return kind, odd.get(act, body)
