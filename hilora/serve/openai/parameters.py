"""OpenAI's parameters that the service lacks, and the values at which they are accepted all the same.

Clients send many of them at the value that changes nothing: such a request is answered. At any other value the answer
would not be what was asked for, and the request is refused. `page` makes the documents' tables of these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hilora.serve.faults import ServiceError

Table = Mapping[str, "Lacking"]
"""Name -> what is lacking."""


@dataclass(frozen=True)
class Lacking:
    """A parameter that has no effect.

    Attributes:
        why: what to do instead, or what it is taken for.
        neutral: values at which it is accepted beside null; None for any value at all: it is a label or a hint, and
            no answer depends on it.
    """

    why: str
    neutral: Sequence[Any] | None = ()

    def accepts(self, value: Any) -> bool:
        """Whether a request with this value is answered as if it had none."""
        return value is None or self.neutral is None or any(same(value, known) for known in self.neutral)

    @property
    def schema(self) -> dict[str, Any]:
        """What the OpenAPI document says of it."""
        if self.neutral is None:
            return {"description": f"Accepted, without effect: {self.why}."}
        return {"description": f"Not supported: {self.why}.", "enum": [None, *self.neutral]}


PENALTY = Lacking("tokens are not penalised for coming again", (0,))
LOGIT_BIAS = Lacking("no token is made more or less likely", ({},))
USER = Lacking("tokens of the server say who asks", None)

CHAT: Table = {
    "audio": Lacking("answers are texts"),
    "frequency_penalty": PENALTY,
    "function_call": Lacking("functions are not called", ("none", "auto")),
    "functions": Lacking("functions are not called", ([],)),
    "logit_bias": LOGIT_BIAS,
    "metadata": Lacking("nothing is stored under it", None),
    "modalities": Lacking("answers are texts", (["text"],)),
    "moderation": Lacking("nothing is moderated"),
    "parallel_tool_calls": Lacking("tools are not called", (True, False)),
    "prediction": Lacking("no answer is predicted"),
    "presence_penalty": PENALTY,
    "prompt_cache_key": Lacking("a hint for caches", None),
    "prompt_cache_options": Lacking("a hint for caches", None),
    "prompt_cache_retention": Lacking("a hint for caches", None),
    "reasoning_effort": Lacking("the model answers at once", ("none",)),
    "response_format": Lacking("answers are free text", ({"type": "text"},)),
    "safety_identifier": USER,
    "service_tier": Lacking("all requests are served alike", ("auto", "default")),
    "store": Lacking("no answer is kept", (False,)),
    "tool_choice": Lacking("tools are not called", ("none", "auto")),
    "tools": Lacking("tools are not called", ([],)),
    "user": USER,
    "verbosity": Lacking("ask in the messages for short or long answers", ("medium",)),
    "web_search_options": Lacking("nothing is searched for"),
}  # fmt: skip
"""Of a chat request."""

COMPLETION: Table = {
    "best_of": Lacking("ask for n answers and choose among them", (1,)),
    "echo": Lacking("an answer does not repeat its prompt", (False,)),
    "frequency_penalty": PENALTY,
    "logit_bias": LOGIT_BIAS,
    "presence_penalty": PENALTY,
    "suffix": Lacking("text is only added at the end", ("",)),
    "user": USER,
}
"""Of a completion request."""

MESSAGE: Table = {
    "annotations": Lacking("of answers with sources", ([],)),
    "audio": Lacking("messages are texts"),
    "function_call": Lacking("functions are not called"),
    "name": Lacking("models are not told who speaks; write it into the content", ("",)),
    "parsed": Lacking("give what the assistant said"),
    "provider_specific_fields": Lacking("give what the assistant said", ({},)),
    "reasoning_content": Lacking("give what the assistant said", ("",)),
    "refusal": Lacking("put it into the content", ("",)),
    "tool_calls": Lacking("tools are not called", ([],)),
}
"""Of a message; clients send answers back as they came, with these."""

PART: Table = {
    "annotations": Lacking("of answers with sources", ([],)),
    "cache_control": Lacking("a hint for caches", None),
    "prompt_cache_breakpoint": Lacking("a hint for caches", None),
}
"""Of a part of a message's content."""

STREAM: Table = {"include_obfuscation": Lacking("chunks are not padded", (False,))}
"""Of stream_options."""


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: 0 and 0.0 are, 0 and false are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def settle(given: Mapping[str, Any], known: Collection[str], lacking: Table, path: str = "") -> dict[str, Any]:
    """An object of a request without what the service lacks and does not need.

    Args:
        given: the object.
        known: its names that the service knows.
        lacking: those that it accepts at some values.
        path: of the object in the request, with a dot at its end: "messages[0].".

    Raises:
        ServiceError: there is a parameter that is lacking, or that nobody knows; `param` says which.
    """
    for name, value in given.items():
        param = f"{path}{name}"
        if name in known:
            continue
        if name not in lacking:
            near = get_close_matches(name, [*known, *lacking], n=1)
            hint = f" Did you mean {path + near[0]!r}?" if near else ""
            raise ServiceError(f"Unknown parameter {param!r:.120}.{hint}", "unknown_parameter", param)
        if not lacking[name].accepts(value):
            values = ", ".join([*(repr(each) for each in lacking[name].neutral or ()), "null"])
            raise ServiceError(
                f"{param!r} is not supported: {lacking[name].why}. Leave it out, or send one of: {values}.",
                "unsupported_parameter",
                param,
            )
    return {name: value for name, value in given.items() if name in known}
