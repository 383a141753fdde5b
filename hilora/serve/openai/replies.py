"""What is sent back, in OpenAI's forms; `hilora` says beside them how the prompt was routed."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # the OpenAPI document cannot be made of typing's before 3.12

FinishReason = Literal["stop", "length"]


class AdapterPart(TypedDict):
    """One adapter's part in an answer; all but name and weight only where reasons are asked for (explain)."""

    name: str
    weight: Annotated[float | None, Field(description="routing weight")]
    score: NotRequired[Annotated[float | None, Field(description="how well it fits the prompt")]]
    rocs: NotRequired[Annotated[int, Field(description="rank-one components that each token uses of it")]]
    rank: NotRequired[Annotated[int, Field(description="those that it has")]]
    hash: NotRequired[Annotated[str, Field(description="of its content")]]
    seen: NotRequired[Annotated[bool | None, Field(description="whether its score says that it knows such prompts")]]


class Reasons(TypedDict):
    """How the prompt was routed; the same seed, pool version and epoch give the same again."""

    method: str
    adapters: Annotated[list[AdapterPart], Field(description="best first; none where the base model answers alone")]
    note: Annotated[str, Field(description="what you should know; empty for nothing")]
    seed: Annotated[int, Field(description="yours, or the one that was drawn")]
    more: NotRequired[Annotated[int, Field(description="adapters that are not told here; see explain")]]
    epoch: NotRequired[Annotated[str, Field(description="of what is learned of the pool")]]
    pool: NotRequired[Annotated[str, Field(description="a short hash of the adapters that the caller sees")]]
    abstained: NotRequired[Annotated[bool, Field(description="no adapter fits, and the method leaves such prompts")]]


class Usage(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log-probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(TypedDict):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One of n answers."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


class ChatCompletion(TypedDict):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    hilora: Reasons


class TextChoice(TypedDict):
    """One of n completions."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: TextLogprobs | None


class TextCompletion(TypedDict):
    """The completions of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    hilora: Reasons


class RouteReply(TypedDict):
    """How a prompt would be served."""

    object: Literal["hilora.route"]
    model: str
    prompt_tokens: NotRequired[Annotated[int, Field(description="where the base model's tokenizer is at hand")]]
    system_fingerprint: str
    hilora: Reasons


class LookReply(TypedDict):
    """What the tokens of a prompt and of its answer use, mean over the sites of the model."""

    object: Literal["hilora.activations"]
    model: str
    prompt_tokens: Annotated[int, Field(description="how many of the tokens are the prompt's")]
    system_fingerprint: str
    tokens: list[str]
    adapters: Annotated[list[str], Field(description="best first; the columns below")]
    rocs_used: Annotated[list[list[float]], Field(description="rank-one components, token by adapter")]
    share_added: Annotated[
        list[list[float]], Field(description="of what all adapters add to a token, token by adapter")
    ]
    hilora: Reasons


class ModelInfo(TypedDict):
    """What is told of an adapter."""

    hash: Annotated[str, Field(description="of its content; may stand for the name")]
    rank: int
    samples: Annotated[int, Field(description="texts that it is routed by")]
    enabled: Annotated[bool, Field(description="whether prompts are routed to it")]


class Model(TypedDict):
    """Something that can be named as model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    hilora: NotRequired[ModelInfo]


class ModelList(TypedDict):
    """Everything that you can name as model."""

    object: Literal["list"]
    data: list[Model]


class ErrorBody(TypedDict):
    """What was refused or failed."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="the field of the request that is meant")]
    code: str | None


class ErrorReply(TypedDict):
    """An error, in OpenAI's form."""

    error: ErrorBody
