"""What callers ask of the service, and what they get: nothing here knows HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from hilora.base.prompts import Prompt
from hilora.pool.view import Entry
from hilora.types import Choice

AUTO, BASE = "auto", "base"
"""Names that route, and that ask for the base model alone; no adapter is called so."""
SCOPES = ("use", "upload", "admin")
"""What a token may be for."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: whose private adapters he sees beside the public ones; "" for nobody's.
        scopes: what he may do.
        token: id of the token that says so; "" where none is needed.
    """

    tenant: str = ""
    scopes: frozenset[str] = frozenset(SCOPES)
    token: str = ""


@dataclass(frozen=True)
class Ask:
    """One prompt, and how it is to be answered; checked as far as that is possible without a model.

    Attributes:
        prompt: a chat, or a text.
        caller: who asks.
        model: AUTO, BASE, or the name or hash of an adapter that the caller sees.
        method: how it is routed; "" for the server's default. Only with AUTO.
        options: of the method, as alpha.
        allow: adapters to keep to, by name or hash; None for all that the caller sees.
        raw: the text goes to the model as it is, without a chat template.
        max_new_tokens: None for as many as the context has room for.
        stops: texts that end an answer.
        seed: of the ROCs' draw, and of sampling.
        sampling: generation options, as for `HiLoRA.generate`: do_sample, temperature, top_p ...
        answers: how many.
        top_logprobs: so many alternatives at each token are reported; None for no log-probabilities at all.
        follow: pieces are wanted as they come.
        answer: the text of an answer, where none is to be made: its tokens and the prompt's are looked at.
    """

    prompt: Prompt
    caller: Caller = field(default_factory=Caller)
    model: str = AUTO
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    allow: Sequence[str] | None = None
    raw: bool = False
    max_new_tokens: int | None = None
    stops: Sequence[str] = ()
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    answers: int = 1
    top_logprobs: int | None = None
    follow: bool = False
    answer: str | None = None


@dataclass(frozen=True)
class Why:
    """How a prompt is served, and why; known before its first token."""

    method: str
    choices: tuple[Choice, ...]  # best first; none where the base model answers alone
    hashes: tuple[str, ...]  # of their contents
    note: str  # what the caller should know; "" for nothing
    prompt_tokens: int  # 0 where the prompt is not tokenised
    epoch: str  # of what is learned of the pool; "" where nothing is
    pool: str  # short hash of the adapters that the caller sees


@dataclass(frozen=True)
class TokenLog:
    """One new token, with its log-probability, by the model's unprocessed logits."""

    token: str
    logprob: float
    data: bytes  # of the token alone
    top: tuple[tuple[str, float, bytes], ...] = ()  # the likeliest, best first


@dataclass(frozen=True)
class Piece:
    """More of one answer's text."""

    answer: int  # which
    text: str
    logs: tuple[TokenLog, ...] = ()  # of tokens since the last piece


@dataclass(frozen=True)
class Done:
    """One answer is complete; its last piece came before."""

    answer: int
    text: str  # the whole
    finish_reason: str  # "stop", "length" or "abstain", as `Completion.finish_reason`
    completion_tokens: int
    logs: tuple[TokenLog, ...] = ()  # of all its tokens


@dataclass(frozen=True)
class Looked:
    """What the tokens of a prompt and of an answer use (`analyse.activation.Activation`)."""

    tokens: tuple[str, ...]  # the prompt's, then the answer's
    num_prompt: int
    adapters: tuple[str, ...]  # best first, as the caller knows them
    rocs_used: tuple[tuple[float, ...], ...]  # (token, adapter), mean over sites
    share_added: tuple[tuple[float, ...], ...]  # (token, adapter), of what all add to a token


@runtime_checkable
class Answering(Protocol):
    """The answers to one prompt, as they come."""

    @property
    def why(self) -> Why:
        """How the prompt is served."""
        ...

    def __aiter__(self) -> AsyncIterator[Piece | Done]:
        """Pieces, where they are wanted, and each answer's end; what fails is raised. Ends after the last `Done`."""
        ...

    async def close(self) -> None:
        """Nobody waits any more: what has not ended ends at the next step."""
        ...


@runtime_checkable
class Shelf(Protocol):
    """What can be named."""

    @property
    def methods(self) -> Sequence[str]:
        """Those that may be asked for, the default first."""
        ...

    @property
    def opened(self) -> int:
        """When, in seconds since 1970."""
        ...

    def visible(self, caller: Caller) -> Sequence[Entry]:
        """The adapters that a caller may name, under the names that he knows them by, in the order of these."""
        ...


@runtime_checkable
class Answers(Protocol):
    """What answers prompts."""

    async def answer(self, ask: Ask) -> Answering:
        """Route a prompt and have it answered; returns when its first step may come.

        Raises:
            ServiceError: there is too much to do, or the caller may not.
            InputError: what is asked cannot be.
        """
        ...


@runtime_checkable
class Desk(Shelf, Answers, Protocol):
    """What the service asks (`desk.PoolDesk`)."""

    async def route(self, ask: Ask) -> Why:
        """The same without an answer."""
        ...

    async def look(self, ask: Ask) -> tuple[Why, Looked]:
        """The same with the answer that is given, looked at."""
        ...
