"""A request to vLLM's API -> what is routed: its prompt's text, and the `hilora` field as hilora takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hilora.serve.asked import AUTO, Ask, Caller
from hilora.serve.faults import ServiceError
from hilora.serve.limits import Limits
from hilora.serve.openai.asking import refused, route_ask
from hilora.serve.openai.requests import RouteRequest

ROUTED = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
"""Paths that models of hilora's may be named at, and the field with the prompt."""
ROLES = ("system", "developer", "user", "assistant")
TEXTS = ("text", "input_text")
ANY = "-"
"""Stands for a prompt that nothing is routed on."""
_ANYBODY, _LIMITS = Caller(), Limits()


def ask_of(body: Mapping[str, Any], path: str, methods: Sequence[str]) -> Ask:
    """What a request asks, as far as routing is concerned; vLLM looks at the rest.

    Args:
        body: of the request; its model is one of hilora's.
        path: one of `ROUTED`.
        methods: that may be asked for.

    Raises:
        ServiceError: it holds no prompt to route on, or asks for what cannot be.
    """
    given = {name: body[name] for name in ("model", "seed", "hilora") if body.get(name) is not None}
    field = ROUTED[path]
    if body.get("model") in (None, AUTO):
        given[field] = (_messages if field == "messages" else _text)(body.get(field))
    else:
        given["prompt"] = ANY
    try:
        return route_ask(RouteRequest.model_validate(given), _ANYBODY, _LIMITS, methods)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step in given or isinstance(step, str))
        raise refused(where, f"{where!r:.120}: {first['msg']}.") from error


def _messages(given: Any) -> list[dict[str, str]]:
    """The texts of a chat; images, tools' answers and the like are not routed on."""
    if not isinstance(given, list):
        raise refused("messages", f"messages is a list; got {given!r:.80}.")
    known = [each for each in given if isinstance(each, dict) and each.get("role") in ROLES]
    return [{"role": each["role"], "content": _content(each.get("content"))} for each in known]


def _content(given: Any) -> str:
    if isinstance(given, str):
        return given
    parts = [part for part in given or () if isinstance(part, dict) and part.get("type") in TEXTS]
    return "\n".join(str(part.get("text", "")) for part in parts)


def _text(given: Any) -> str:
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    if isinstance(given, str):
        return given
    raise ServiceError(
        "Model 'auto' routes one text; prompt holds several, or token ids. Send them one by one, or name a model.",
        "invalid_value",
        "prompt",
    )
