"""Logits -> the next token of each row; what a row gets depends on its own tokens and seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from hilora.engine.request import Request

Process = Callable[[Any, Any], Any]
"""(tokens (1, seq), scores (1, vocabulary)) -> scores, as transformers' processors take them."""


def draw_key(seed: int, text: str, answer: int) -> int:
    """128 bits of a draw's own: of a seed, a prompt, and which of its answers."""
    digest = hashlib.blake2b(f"{seed}\0{answer}\0{text}".encode(errors="surrogatepass"), digest_size=16)
    return int.from_bytes(digest.digest(), "little")


def gumbel(key: int, position: int, size: int) -> Float[Tensor, " _"]:
    """Noise of one new token, a function of its key and position (Philox, counted by position): fp32."""
    stream = np.random.Generator(np.random.Philox(key=key, counter=position << 128))
    return torch.from_numpy(stream.gumbel(size=size)).float()


@dataclass(frozen=True, eq=False)
class Pick:
    """How the tokens of one answer are chosen.

    Attributes:
        processes: what changes scores, given the row's tokens.
        warp: what shapes the distribution that tokens are drawn from; None takes the likeliest.
        key: of the draws.
        least: before so many new tokens no end token is chosen.
        ends: the end tokens.
    """

    processes: Sequence[Process] = ()
    warp: Process | None = None
    key: int = 0
    least: int = 0
    ends: Sequence[int] = ()

    def is_plain(self, count: int) -> bool:
        """Whether the token after `count` new ones is the likeliest, whatever came before."""
        return self._is_likeliest and count >= self.least

    def barred(self, count: int) -> Sequence[int]:
        """Tokens that may not come after `count` new ones, where the likeliest of the others does; else none."""
        return self.ends if self._is_likeliest and count < self.least else ()

    @property
    def _is_likeliest(self) -> bool:
        return not self.processes and self.warp is None

    def __call__(self, request: Request, logits: Float[Tensor, " vocabulary"]) -> int:
        """The next token of a row."""
        tokens = torch.tensor([[*request.ids, *request.new]], device=logits.device)
        scores = logits[None].float().clone()
        if len(request.new) < self.least:
            scores[:, list(self.ends)] = -torch.inf
        for process in self.processes:
            scores = process(cast("Any", tokens), cast("Any", scores))
        if self.warp is not None:
            scores = torch.log_softmax(self.warp(tokens, scores), dim=-1)
            scores = scores + gumbel(self.key, len(request.new), scores.shape[1]).to(scores.device)
        return int(scores.argmax())


def pick_tokens(requests: Sequence[Request], logits: Float[Tensor, "row vocabulary"]) -> list[int]:
    """The next token of each row."""
    live = [(row, request) for row, request in enumerate(requests) if not request.ended]
    barred = {row: list(request.pick.barred(len(request.new))) for row, request in live}
    if any(barred.values()):  # of all rows in one go: a vocabulary is long
        logits = logits.clone()
        for row, ends in barred.items():
            logits[row, ends] = -torch.inf
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, request in live:
        if not barred[row] and not request.pick.is_plain(len(request.new)):
            tokens[row] = request.pick(request, logits[row])
    return tokens
