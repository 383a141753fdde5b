"""What a router gets of prompts: texts, those that the embedder would not read to their end without their middle.

A text that fits is left as it is. Of one that does not, a question at its end would go unread, or else an instruction
at its beginning. How much is kept of either was chosen by `reproduce/selection/turns.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.devices import send
from hilora.base.embed import Embedder
from hilora.base.encoders import Span
from hilora.base.prompts import Prompt, each_of, joined, query_turns

HEAD, TAIL = 1 / 2, 1 / 2
"""Shares of what the embedder reads that are kept of a text that is too long."""
SPARE = 4
"""Tokens that are kept free, since a word that is cut may be read as more of them."""


@dataclass(frozen=True)
class Asked:
    """Prompts as a router gets them.

    Attributes:
        texts: what is routed on; those that are too long without their middle.
        embedding: of these texts; None for a router that does not ask for it.
        said: what a user should know of each: which turns were routed on, what was left out; else "".
    """

    texts: list[str]
    embedding: Float[Tensor, "batch dim"] | None
    said: list[str]

    def notes(self, others: Sequence[str]) -> list[str]:
        """What else there is to know of each prompt, and what was routed on."""
        return ["; ".join(filter(None, pair)) for pair in zip(others, self.said, strict=True)]


def look(prompts: Sequence[Prompt], embedder: Embedder | None, device: torch.device | None = None) -> Asked:
    """Prompts as a router gets them.

    Args:
        prompts: texts and chats.
        embedder: the pool's; None for a router that does not look at what is asked: then nothing is left out.
        device: where the embeddings are to lie; default: the CPU.

    Raises:
        InputError: as `base.prompts.query_text`.
    """
    turns = each_of(prompts, query_turns)
    whole = [joined(each) for each in turns]
    if embedder is None:
        return Asked(whole, None, [""] * len(whole))
    texts, left_out = zip(*_shortened(whole, embedder), strict=True) if whole else ((), ())
    said = [_said(len(own), count) for own, count in zip(turns, left_out, strict=True)]
    return Asked(list(texts), send(embedder(texts), device or torch.device("cpu")), said)


def _said(turns: int, left_out: int) -> str:
    """In words, how many user messages were routed on, and how many tokens of them were not."""
    parts = [f"the last {turns} user messages together"] if turns > 1 else []
    parts += [f"first and last words alone ({left_out} tokens between them left out)"] if left_out else []
    return f"routed on {', '.join(parts)}" if parts else ""


def _shortened(texts: Sequence[str], embedder: Embedder) -> list[tuple[str, int]]:
    """`shorten` of each; those that fit are known together, where that is faster."""
    if embedder.lengths is None:
        return [shorten(text, embedder) for text in texts]
    lengths = embedder.lengths(texts)
    return [
        shorten(text, embedder) if length > embedder.room else (text, 0)
        for text, length in zip(texts, lengths, strict=True)
    ]


def shorten(text: str, embedder: Embedder) -> tuple[str, int]:
    """A text as it is routed on, and how many tokens of its middle that leaves out."""
    spans = [] if embedder.spans is None else embedder.spans(text)
    if len(spans) <= embedder.room:
        return text, 0
    room = max(0, embedder.room - SPARE)  # of an embedder whose instruction fills it nothing is left
    head, tail = int(HEAD * room), int(TAIL * room)
    return ends(text, spans, head, tail), len(spans) - head - tail


def ends(text: str, spans: Sequence[Span], head: int, tail: int) -> str:
    """The first and the last so many tokens of a text."""
    kept = [text[: spans[head - 1][1]]] if head else []
    return "\n".join([*kept, text[spans[-tail][0] :]] if tail else kept) or text
