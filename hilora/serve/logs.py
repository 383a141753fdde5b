"""Log-probabilities of new tokens, by the model's unprocessed logits, whatever sampling makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from hilora.engine.request import Picks, Request
from hilora.serve.asked import TokenLog


@dataclass(frozen=True)
class Noted:
    """A token, its log-probability, and the likeliest with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def note(logits: Tensor, token: int, top: int) -> Noted:
    """What is kept of a step.

    Args:
        logits: (vocabulary,).
        token: the one that was picked.
        top: how many of the likeliest.
    """
    values = torch.log_softmax(logits.float(), -1)
    best = values.topk(min(top, len(values)))
    return Noted(token, float(values[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


@dataclass(eq=False)
class Recorded:
    """How tokens are picked, and noted down: for the joining lane.

    Args:
        pick: how.
        top: so many of the likeliest are kept.
    """

    pick: Picks
    top: int
    noted: list[Noted] = field(default_factory=list)

    def is_plain(self, count: int) -> bool:
        """Never: it wants to see them all."""
        return False

    def barred(self, count: int) -> Sequence[int]:
        """None: it wants to see them all."""
        return ()

    def __call__(self, request: Request, logits: Tensor) -> int:
        """The next token of a row."""
        is_plain = self.pick.is_plain(len(request.new))
        token = int(logits.argmax()) if is_plain else self.pick(request, logits)
        self.noted.append(note(logits, token, self.top))
        return token


class Recorder:
    """Notes the steps of a batch down: for the closed lane.

    Args:
        top: so many of the likeliest are kept.

    Attributes:
        rows: what is noted of each, also behind its end.
        processor, criterion: for transformers; the one sees scores before anything changes them, the other tokens.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self.rows: list[list[Noted]] = []
        self.processor, self.criterion = _Scores(self), _Tokens(self)
        self._first, self._width = 0, 0  # of the rows that are made now, and how long they are

    def see(self, input_ids: Tensor) -> None:
        """The tokens of all rows, the newest last."""
        count, width = input_ids.shape
        if width <= self._width:  # the rows before have ended, and others begin
            self._first = len(self.rows)
        self._width = width
        while len(self.rows) < self._first + count:
            self.rows.append([])
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self.rows[self._first + row].append(note(self.processor.scores[row], token, self.top))


class _Scores(LogitsProcessor):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.scores = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores = scores.clone()
        return scores


class _Tokens(StoppingCriteria):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.recorder.see(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def token_logs(noted: Sequence[Noted], tokenizer: Any) -> tuple[TokenLog, ...]:
    """What is noted of tokens, as texts and bytes."""
    out = []
    for each in noted:
        said, data = spelled(tokenizer, each.token)
        top = tuple((*spelled(tokenizer, token), value) for token, value in each.top)
        out.append(TokenLog(said, each.logprob, data, tuple((text, value, raw) for text, raw, value in top)))
    return tuple(out)


def spelled(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """A token's text, and its bytes, which may be a part of a character."""
    text = str(tokenizer.decode([token]))
    if "\ufffd" not in text:
        return text, text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if piece.startswith("<0x") and piece.endswith(">"):
        return text, bytes([int(piece[3:-1], 16)])
    known = _bytes()
    if all(character in known for character in piece):
        return text, bytes(known[character] for character in piece)
    return text, text.encode()


@cache
def _bytes() -> dict[str, int]:
    """Byte-level tokenizers write each byte as a character that can be printed."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
