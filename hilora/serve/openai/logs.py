"""Log-probabilities of tokens in OpenAI's two forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hilora.serve.asked import TokenLog
from hilora.serve.openai.replies import ChatLogprobs, TextLogprobs, TopLogprob

NEVER = -9999.0
"""What OpenAI writes for a token that cannot come; JSON has no infinity."""


def chat_logs(logs: Sequence[TokenLog]) -> ChatLogprobs:
    """As in chats."""
    return {
        "content": [
            {**_one(log.token, log.logprob, log.data), "top_logprobs": [_one(*each) for each in log.top]}
            for log in logs
        ],
        "refusal": None,
    }


def text_logs(logs: Sequence[TokenLog], start: int = 0) -> TextLogprobs:
    """As in completions.

    Args:
        logs: of tokens in a row.
        start: characters of the tokens before them.
    """
    tokens = [log.token for log in logs]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(log.logprob) for log in logs],
        "top_logprobs": [
            {token: _finite(value) for token, value, _ in log.top} | {log.token: _finite(log.logprob)} for log in logs
        ],
        "text_offset": [start + sum(map(len, tokens[:place])) for place in range(len(tokens))],
    }


def _one(token: str, logprob: float, data: bytes) -> TopLogprob:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(data)}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else NEVER
