"""A client's request, read as far as routing needs it; all else goes on as it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from hilora.base.prompts import Prompt
from hilora.serve.asked import AUTO, Ask, Caller
from hilora.serve.faults import ServiceError
from hilora.serve.limits import Limits
from hilora.serve.openai.asking import chosen_of, refused, seed_of
from hilora.serve.openai.requests import Hilora

OWN = ("model", "hilora")
"""Fields that do not go on."""
OTHERS = ("lora_request", "lora_name", "lora_path", "lora", "adapter", "adapters", "adapter_id", "adapter_source")
"""Fields by which servers are told of adapters, beside the model."""
EXTRAS = "vllm_xargs"
"""Of vLLM: what reaches its plugins."""
NAMED = "-"
"""Stands for a prompt that is not looked at."""


@dataclass(frozen=True)
class Read:
    """A request.

    Attributes:
        ask: what is to be routed; its prompt is only there for `auto`.
        fields: that go on.
        explain: whether the answer is to say why.
        seeded: whether the client gave a seed.
    """

    ask: Ask
    fields: Mapping[str, Any]
    explain: bool
    seeded: bool


def read(raw: bytes, raw_text: bool, caller: Caller, limits: Limits, methods: Sequence[str]) -> Read:
    """Read a body.

    Args:
        raw: the body.
        raw_text: it is a completion's; else a chat's.
        caller: who asks.
        limits: of requests.
        methods: that may be asked for.

    Raises:
        ServiceError: it cannot be routed, or names adapters otherwise than by its model.
        RequestValidationError: its `hilora` is not what it should be.
    """
    body = _json(raw)
    model, routed = body.get("model", AUTO), _hilora(body)
    if not isinstance(model, str) or not model:
        raise refused("model", f"model is {model!r:.60}; expected 'auto', 'base' or the name of an adapter.")
    _refuse_adapters(body)
    if routed.explain and body.get("stream"):
        raise refused(
            "hilora.explain",
            "A stream goes on as the backend sends it, so it has no room for reasons: its headers name the adapters, "
            "POST /v1/route tells all. Leave hilora.explain out, or stream.",
        )
    given = body.get("seed")
    seed = seed_of(given if isinstance(given, int) else None, routed)
    ask = Ask(
        prompt=_prompt(body, raw_text) if model == AUTO else NAMED,
        caller=caller,
        model=model,
        raw=raw_text,
        seed=seed or 0,
        answers=_answers(body.get("n"), limits),
        follow=bool(body.get("stream")),
        **chosen_of(model, routed, limits, methods),
    )
    fields = {name: value for name, value in body.items() if name not in OWN}
    if seed is not None and given is None:
        fields["seed"] = seed
    return Read(ask, fields, bool(routed.explain), seed is not None)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ServiceError(f"The body is no JSON: {error}.", "invalid_json") from error
    if not isinstance(body, dict):
        raise ServiceError(f"The body is a {type(body).__name__}; expected an object.", "invalid_value")
    return body


def _hilora(body: dict[str, Any]) -> Hilora:
    if body.get("hilora") is None:
        return Hilora()
    try:
        return Hilora.model_validate(Hilora.settled(body["hilora"], "hilora."))
    except ValidationError as error:
        found = [{**each, "loc": ("body", "hilora", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found, body=body) from error


def _refuse_adapters(body: dict[str, Any]) -> None:
    extras = body.get(EXTRAS)
    named = [name for name in OTHERS if body.get(name) is not None]
    named += [f"{EXTRAS}.hilora"] if isinstance(extras, dict) and "hilora" in extras else []
    if named:
        raise ServiceError(
            f"{named[0]!r} is not supported: model alone says which adapters answer.",
            "unsupported_parameter",
            named[0],
        )


def _prompt(body: dict[str, Any], raw_text: bool) -> Prompt:
    if not raw_text:
        return _chat(body.get("messages"))
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        what = "token ids or several texts" if isinstance(prompt, list) else f"{prompt!r:.60}"
        raise refused("prompt", f"model 'auto' routes one text; got {what}. Give a text, or name a model.")
    return prompt


def _chat(messages: Any) -> list[dict[str, str]]:
    """Roles and texts of a chat; what is no text, as an image, is not routed on."""
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise refused("messages", "messages are a list of objects with role and content, one at least.")
    return [{"role": str(each.get("role")), "content": _text(each.get("content"))} for each in messages]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    return "\n".join(
        part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _answers(n: Any, limits: Limits) -> int:
    """How many answers; what is no number the backend refuses."""
    return min(n, limits.answers) if isinstance(n, int) and n > 0 else 1
