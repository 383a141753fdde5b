"""What clients send: OpenAI's requests, and beside them `hilora`, for what OpenAI does not know.

Types are strict, as OpenAI's are: "1" is no number. Bounds that a server sets are looked at in `asking`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hilora.serve.asked import AUTO
from hilora.serve.faults import ServiceError
from hilora.serve.openai import parameters
from hilora.serve.openai.parameters import Table, settle

WIDE = 2**63
"""Integers are smaller: they have 64 bits."""
NAME = 200
"""Characters of a name, at most."""


def _whole(text: str) -> str:
    """Refuse half of a surrogate pair: JSON can hold it, no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character ({text[error.start]!r}) at {error.start}"
        raise ValueError(f"the text has {half}; it was cut inside a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
Seed = Annotated[int, Field(ge=-WIDE, lt=WIDE)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[Text, Field(min_length=1, max_length=NAME)]
OptionName = Annotated[Text, Field(pattern=r"^[a-z][a-z_0-9]{0,63}$")]
OptionValue = bool | Annotated[int, Field(gt=-WIDE, lt=WIDE)] | Finite | Annotated[Text, Field(max_length=NAME)]
MethodOptions = Annotated[
    dict[OptionName, OptionValue], Field(max_length=16, json_schema_extra={"additionalProperties": False})
]


def _show_lacking(schema: dict[str, Any], model: type[Strict]) -> None:
    schema["properties"] |= {name: each.schema for name, each in model.LACKING.items()}


class Strict(BaseModel):
    """An object whose names are all known."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=_show_lacking)
    LACKING: ClassVar[Table] = {}

    @classmethod
    def settled(cls, given: Any, path: str = "") -> Any:
        """What was given, without parameters that are lacking and at a neutral value."""
        return settle(given, cls.model_fields, cls.LACKING, path) if isinstance(given, dict) else given


class Part(Strict):
    """A part of a message."""

    LACKING: ClassVar[Table] = parameters.PART
    type: Literal["text"]
    text: Text


class Message(Strict):
    """A message of a chat."""

    LACKING: ClassVar[Table] = parameters.MESSAGE
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is read as system")
    content: Text | list[Part] = Field(description="a text, or its parts, which are put one below the other")

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(Strict):
    """How an answer is streamed."""

    LACKING: ClassVar[Table] = parameters.STREAM
    include_usage: bool | None = Field(default=None, description="a last chunk says how many tokens were used")


class Hilora(Strict):
    """How the prompt is routed; clients of OpenAI's API send it as extra_body={"hilora": {...}}."""

    method: Name | None = Field(
        default=None, description="how adapters are chosen; the server's first method by default"
    )
    alpha: Finite | None = Field(default=None, description="short for options.alpha, of methods with conformal sets")
    options: MethodOptions | None = Field(default=None, description="of the method")
    seed: Seed | None = Field(default=None, description="the same as seed beside it")
    allow: list[Name] | None = Field(default=None, description="adapters to keep to, by name or content hash")
    explain: bool | None = Field(default=None, description="true for all reasons: scores, ROCs, ranks, hashes")


class Generation(Strict):
    """What all requests have in common."""

    model: Name = Field(
        default=AUTO,
        description='"auto" routes; "base" is the model without adapters; or the name or hash of an adapter',
    )
    stream: bool | None = Field(default=None, description="true for server-sent events")
    stream_options: StreamOptions | None = Field(default=None, description="only with stream")
    stop: Text | list[Text] | None = Field(default=None, description="texts that end an answer and are no part of it")
    seed: Seed | None = Field(
        default=None, description="of the draw of ROCs and of sampling; where there is none, one is drawn and told"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0 takes the likeliest token; without it the model's own setting"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="tokens with this much probability are drawn from"
    )
    n: Count | None = Field(default=None, description="answers; 1 by default")
    hilora: Hilora | None = Field(default=None, description="how the prompt is routed")

    @model_validator(mode="before")
    @classmethod
    def settle_all(cls, given: Any) -> Any:
        """Look at every name in the request before its value is looked at."""
        if not isinstance(given, dict):
            return given
        found = {name: cls._settle_field(name, value) for name, value in given.items()}
        return cls.settled(found)

    @classmethod
    def _settle_field(cls, name: str, value: Any) -> Any:
        if name == "hilora":
            return Hilora.settled(value, "hilora.")
        if name == "stream_options":
            return StreamOptions.settled(value, "stream_options.")
        if name == "messages" and isinstance(value, list):
            return [_settle_message(message, f"messages[{place}].") for place, message in enumerate(value)]
        if name == "prompt" and isinstance(value, list) and any(isinstance(each, int | list) for each in value):
            raise ServiceError("prompt holds token ids; give the text.", "unsupported_parameter", "prompt")
        return value


def _settle_message(given: Any, path: str) -> Any:
    message = Message.settled(given, path)
    if isinstance(message, dict) and isinstance(parts := message.get("content"), list):
        for place, part in enumerate(parts):
            if isinstance(part, dict) and part.get("type") not in (None, "text"):
                raise ServiceError(
                    f"'{path}content[{place}].type' is {part['type']!r:.40}; the model reads texts only.",
                    "unsupported_parameter",
                    f"{path}content[{place}].type",
                )
        found = [Part.settled(part, f"{path}content[{place}].") for place, part in enumerate(parts)]
        return message | {"content": found}
    return message


class ChatOptions(Generation):
    """Of a chat's answers."""

    LACKING: ClassVar[Table] = parameters.CHAT
    max_tokens: Count | None = Field(
        default=None, description="of an answer; as many as the context has room for by default"
    )
    max_completion_tokens: Count | None = Field(default=None, description="the newer name of max_tokens")
    logprobs: bool | None = Field(default=None, description="true for the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="likeliest tokens to tell at each place; only with logprobs"
    )


class ChatRequest(ChatOptions):
    """A chat that is to go on."""

    messages: list[Message] = Field(min_length=1, description="of the chat so far; the last is to be answered")


class CompletionRequest(Generation):
    """A text that is to go on; it goes to the model as it is, without a chat template."""

    LACKING: ClassVar[Table] = parameters.COMPLETION
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)] = Field(
        description="one text, or a list of one; no token ids"
    )
    max_tokens: Count | None = Field(default=None, description="of an answer; 16 by default, as OpenAI has it")
    logprobs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="likeliest tokens to tell at each place, beside the one that was taken"
    )


class Routable(ChatOptions):
    """A prompt in any form: give messages, prompt or input."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(default=None, description="as in a chat")
    prompt: Text | None = Field(default=None, description="a text, as in a completion")
    input: Text | None = Field(default=None, description="a text, as the only message of a chat")


class RouteRequest(Routable):
    """A prompt that is to be routed, without an answer."""


class LookRequest(Routable):
    """A prompt, and an answer to it, whose tokens are to be looked at."""

    answer: Text = Field(default="", description="the answer, as it was given; without it the prompt's tokens alone")
