"""What the OpenAPI document says beyond types: examples, errors, headers, streams."""

from __future__ import annotations

from typing import Any

from fastapi import Body, Path

from hilora.serve.openai.reasons import SHOWN
from hilora.serve.openai.replies import ErrorReply

QUESTION = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Is this review positive? A joy from start to end."}],
}
TEXT = {"model": "auto", "prompt": "Translate to German: Good morning.\n", "max_tokens": 32, "stop": ["\n"]}


def _examples(**examples: tuple[str, Any]) -> dict[str, Any]:
    return {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}


CHAT_BODY: Any = Body(
    openapi_examples=_examples(
        routed=("The prompt chooses the adapters", QUESTION),
        streamed=(
            "Piece by piece",
            QUESTION | {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0},
        ),
        explained=(
            "With all reasons, by a method of your choice",
            QUESTION | {"hilora": {"method": "hilora", "explain": True}},
        ),
        plain=("The base model alone", QUESTION | {"model": "base"}),
    )
)
COMPLETION_BODY: Any = Body(openapi_examples=_examples(routed=("The text chooses the adapters", TEXT)))
ROUTE_BODY: Any = Body(
    openapi_examples=_examples(
        chat=("A chat", QUESTION), text=("A text", {"input": "Is this review positive? A joy from start to end."})
    )
)
LOOK_BODY: Any = Body(
    openapi_examples=_examples(
        text=("A text, and what came of it", {"input": "Is this review positive? A joy.", "answer": "Yes", "seed": 1})
    )
)
NAME_PATH: Any = Path(description='"auto", "base", or an adapter\'s name or content hash')


ID_HEADER = {
    "X-Request-Id": {
        "description": "Yours, where you sent one, or drawn; the server's log names it.",
        "schema": {"type": "string"},
    }
}
ROUTE_HEADERS = ID_HEADER | {
    SHOWN[0]: {
        "description": "Adapters that answer, best first; percent-encoded, between commas.",
        "schema": {"type": "string"},
    },
    SHOWN[1]: {"description": "How they were chosen.", "schema": {"type": "string"}},
    SHOWN[2]: {"description": "The seed of the answer.", "schema": {"type": "string"}},
}


def _error(text: str, **headers: str) -> dict[str, Any]:
    told = {name: {"description": what, "schema": {"type": "string"}} for name, what in headers.items()}
    return {"model": ErrorReply, "description": text, "headers": ID_HEADER | told}


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: _error("No token, or an unknown one"),
    403: _error("The token is not for this"),
    404: _error("No such model that you see"),
    429: _error("Too much at once; Retry-After says in how many seconds to come again"),
    500: _error("The server failed"),
}
"""Of every path."""
ASKED: dict[int | str, dict[str, Any]] = REFUSALS | {
    400: _error("Something in the request has to change; `param` says what"),
    413: _error("The request is too large"),
    415: _error("The body is not sent as application/json"),
    431: _error("The headers are too large"),
    503: _error("The server is about to end"),
    504: _error("The deadline has passed"),
}
"""Of paths that take a body."""


def answers(reply: Any, streamed: bool) -> dict[int | str, dict[str, Any]]:
    """What a path answers that generates, or routes."""
    found: dict[str, Any] = {
        "model": reply,
        "description": "The answer, and why it is what it is",
        "headers": ROUTE_HEADERS,
    }
    if streamed:
        found["description"] += "; with stream, the same in pieces"
        found["content"] = {
            "text/event-stream": {
                "schema": {"description": "events, each with a chunk as JSON; the last one is [DONE]"},
                "example": 'data: {"object":"chat.completion.chunk", ...}\n\ndata: [DONE]\n\n',
            }
        }
    return ASKED | {200: found}
