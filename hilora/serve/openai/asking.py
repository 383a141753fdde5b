"""A client's request -> what the desk is asked, within a server's limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace as changed
from typing import Any

from hilora.base.prompts import Prompt
from hilora.errors import UnknownNameError
from hilora.serve.asked import AUTO, BASE, Ask, Caller
from hilora.serve.faults import ServiceError
from hilora.serve.limits import Limits
from hilora.serve.openai.requests import (
    ChatOptions,
    ChatRequest,
    CompletionRequest,
    Generation,
    Hilora,
    LookRequest,
    Message,
    Routable,
)

FEW_TOKENS = 16
"""Of a completion whose max_tokens is not said, as with OpenAI."""
COLD = 1e-5
"""A lower temperature draws the likeliest token anyway, and would overflow."""
SEEDS = 2**31
"""Seeds that are drawn; clients whose numbers are doubles can send them back."""


def chat_ask(request: ChatRequest, caller: Caller, limits: Limits, methods: Sequence[str]) -> Ask:
    """What a chat request asks.

    Raises:
        ServiceError: it asks for too much, or for what contradicts itself.
    """
    return _ask(request, _chat(request.messages), caller, limits, methods, **_chat_options(request, limits))


def completion_ask(request: CompletionRequest, caller: Caller, limits: Limits, methods: Sequence[str]) -> Ask:
    """What a completion request asks; raises as `chat_ask`."""
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
    most = _bounded("logprobs", request.logprobs, limits.top_logprobs)
    tokens = request.max_tokens or FEW_TOKENS
    return _ask(request, prompt, caller, limits, methods, raw=True, max_new_tokens=tokens, top_logprobs=most)


def route_ask(request: Routable, caller: Caller, limits: Limits, methods: Sequence[str]) -> Ask:
    """What a request to route asks; raises as `chat_ask`."""
    given = [name for name in ("messages", "prompt", "input") if getattr(request, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise refused(given[-1] if given else "messages", f"Give one of messages, prompt and input; got {got}.")
    text = request.input if request.prompt is None else request.prompt
    prompt = _chat(request.messages) if request.messages is not None else text or ""
    options = _chat_options(request, limits) | {"raw": request.prompt is not None}
    return _ask(request, prompt, caller, limits, methods, **options)


def look_ask(request: LookRequest, caller: Caller, limits: Limits, methods: Sequence[str]) -> Ask:
    """What a request to look at an answer asks; raises as `chat_ask`."""
    if request.model == BASE:
        raise refused("model", "model is 'base', which uses no adapter: there is nothing to look at.")
    return changed(route_ask(request, caller, limits, methods), answer=request.answer)


def refused(param: str, message: str) -> ServiceError:
    """A value that cannot be taken."""
    return ServiceError(message, "invalid_value", param)


def sampling_of(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Generation options; none where nothing is said, for the model's own settings."""
    if (temperature is not None and temperature < COLD) or top_p == 0:
        return {"do_sample": False}
    if temperature is None and top_p in (None, 1):
        return {} if top_p is None else {"top_p": 1.0}
    named = {"temperature": temperature, "top_p": top_p}
    return {"do_sample": True} | {name: float(value) for name, value in named.items() if value is not None}


def seed_of(seed: int | None, routed: Hilora) -> int | None:
    """The seed that is given, if one is.

    Raises:
        ServiceError: two are given, and they differ.
    """
    given = {each for each in (seed, routed.seed) if each is not None}
    if len(given) > 1:
        raise refused("hilora.seed", f"seed is {seed}, hilora.seed is another. Give one of them.")
    return given.pop() if given else None


def draw_seed() -> int:
    """A seed, where none is given."""
    return secrets.randbelow(SEEDS)


def chosen_of(model: str, routed: Hilora, limits: Limits, methods: Sequence[str]) -> dict[str, Any]:
    """How a prompt is to be routed: fields of an `Ask`.

    Raises:
        ServiceError: it is not routed, the method is not served, or the allow list is too long.
    """
    chosen = [name for name in ("method", "alpha", "options", "allow") if getattr(routed, name) is not None]
    if model != AUTO and chosen:
        raise refused(
            f"hilora.{chosen[0]}",
            f"hilora.{chosen[0]} is for model 'auto'; got model {model!r}: nothing is routed.",
        )
    if routed.method is not None and routed.method not in methods:
        raise ServiceError(str(UnknownNameError("method", routed.method, methods)), "invalid_value", "hilora.method")
    if routed.allow is not None and len(routed.allow) > limits.allowed:
        raise refused(
            "hilora.allow", f"hilora.allow has {len(routed.allow)} names; at most {limits.allowed} are taken."
        )
    return {"method": routed.method or "", "options": _method_options(routed), "allow": routed.allow}


def stops_of(stop: str | Sequence[str] | None, limits: Limits) -> tuple[str, ...]:
    """Stop texts.

    Raises:
        ServiceError: there are too many, or one is empty or too long.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.stops:
        raise refused("stop", f"stop has {len(stops)} texts; at most {limits.stops} are taken.")
    for text in stops:
        if not 0 < len(text) <= limits.stop_length:
            raise refused("stop", f"A stop text has {len(text)} characters; 1 to {limits.stop_length} are taken.")
    return stops


def _ask(
    request: Generation, prompt: Prompt, caller: Caller, limits: Limits, methods: Sequence[str], **options: Any
) -> Ask:
    """What requests of all kinds ask alike."""
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options", "stream_options are only for streams: set stream to true, or leave them out.")
    routed = request.hilora or Hilora()
    seed = seed_of(request.seed, routed)
    return Ask(
        prompt=prompt,
        caller=caller,
        model=request.model,
        stops=stops_of(request.stop, limits),
        seed=draw_seed() if seed is None else seed,
        sampling=sampling_of(request.temperature, request.top_p),
        answers=_bounded("n", request.n, limits.answers) or 1,
        follow=bool(request.stream),
        **chosen_of(request.model, routed, limits, methods),
        **options,
    )


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    roles = {"developer": "system"}
    return [{"role": roles.get(message.role, message.role), "content": message.text} for message in messages]


def _chat_options(request: ChatOptions, limits: Limits) -> dict[str, Any]:
    lengths = {each for each in (request.max_tokens, request.max_completion_tokens) if each is not None}
    if len(lengths) > 1:
        raise refused("max_tokens", "max_tokens and max_completion_tokens differ. Give one of them.")
    if request.top_logprobs is not None and not request.logprobs:
        raise refused("top_logprobs", "top_logprobs are only told with logprobs: set logprobs to true.")
    most = _bounded("top_logprobs", request.top_logprobs, limits.top_logprobs)
    return {
        "max_new_tokens": lengths.pop() if lengths else None,
        "top_logprobs": (most or 0) if request.logprobs else None,
    }


def _bounded(param: str, value: int | None, most: int) -> int | None:
    if value is not None and value > most:
        raise refused(param, f"{param} is {value}; at most {most} are given.")
    return value


def _method_options(routed: Hilora) -> dict[str, Any]:
    options: dict[str, Any] = dict(routed.options or {})
    if routed.alpha is not None:
        if options.get("alpha", routed.alpha) != routed.alpha:
            raise refused("hilora.alpha", "hilora.alpha and hilora.options.alpha differ. Give one of them.")
        options["alpha"] = routed.alpha
    return options
