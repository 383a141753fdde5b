"""The two forms of an answer, whole and in chunks: a chat's message, and a completion's text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from hilora.serve.asked import Ask, Done, TokenLog, Why
from hilora.serve.openai.logs import chat_logs, text_logs
from hilora.serve.openai.reasons import fingerprint, reasons_of
from hilora.serve.openai.replies import FinishReason, Usage

ABSTAIN = "abstain"
"""A reason to end that OpenAI does not know: told as "stop", and in `hilora`."""


@runtime_checkable
class Form(Protocol):
    """How OpenAI writes an answer."""

    prefix: str  # of ids
    whole: str  # its `object`
    chunk: str  # likewise, of a stream's

    def says(self, text: str, streamed: bool) -> dict[str, Any]:
        """More of an answer, or all of it, as fields of a choice."""
        ...

    def opens(self) -> dict[str, Any] | None:
        """What a stream says before an answer's first piece; None for nothing."""
        ...

    def logs(self, logs: Sequence[TokenLog], start: int) -> Mapping[str, Any]:
        """Log-probabilities; start is how many characters the tokens before have."""
        ...


class Chat:
    """`chat.completion`."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def says(self, text: str, streamed: bool) -> dict[str, Any]:
        """See `Form`."""
        if streamed:
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opens(self) -> dict[str, Any] | None:
        """See `Form`."""
        return {"delta": {"role": "assistant", "content": "", "refusal": None}}

    def logs(self, logs: Sequence[TokenLog], start: int) -> Mapping[str, Any]:
        """See `Form`."""
        return chat_logs(logs)


class Text:
    """`text_completion`."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def says(self, text: str, streamed: bool) -> dict[str, Any]:
        """See `Form`."""
        return {"text": text}

    def opens(self) -> dict[str, Any] | None:
        """See `Form`."""
        return None

    def logs(self, logs: Sequence[TokenLog], start: int) -> Mapping[str, Any]:
        """See `Form`."""
        return text_logs(logs, start)


CHAT, TEXT = Chat(), Text()


@dataclass(frozen=True)
class Reply:
    """A response under way: what is the same in all of it.

    Attributes:
        form: how answers are written.
        ask: what was asked.
        why: how it is served.
        explain: whether all reasons are told.
        usage: whether a stream tells the tokens used.
    """

    form: Form
    ask: Ask
    why: Why
    explain: bool = False
    usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.form.prefix + uuid4().hex)

    def head(self, kind: str) -> dict[str, Any]:
        """What every response and chunk begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": fingerprint(self.why),
        }

    def whole(self, answers: Sequence[Done]) -> dict[str, Any]:
        """The response with all answers."""
        told = reasons_of(self.ask, self.why, self.explain)
        if any(done.finish_reason == ABSTAIN for done in answers):
            told["abstained"] = True
        choices = [
            self.choice(done.answer, self.form.says(done.text, False), ends_as(done), done.logs)
            for done in sorted(answers, key=lambda done: done.answer)
        ]
        return self.head(self.form.whole) | {"choices": choices, "usage": self.used(answers), "hilora": told}

    def choice(
        self, answer: int, says: dict[str, Any], end: str | None, logs: Sequence[TokenLog] = (), start: int = 0
    ) -> dict[str, Any]:
        """One answer, or more of it."""
        told = None if self.ask.top_logprobs is None else self.form.logs(logs, start)
        return {"index": answer, **says, "finish_reason": end, "logprobs": told}

    def used(self, answers: Sequence[Done]) -> Usage:
        """Tokens; the prompt is read once for all answers."""
        prompt, new = self.why.prompt_tokens, sum(done.completion_tokens for done in answers)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def ends_as(done: Done) -> FinishReason:
    """OpenAI's finish_reason."""
    return "length" if done.finish_reason == "length" else "stop"
