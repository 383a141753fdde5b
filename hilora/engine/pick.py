"""Logits -> the next token of each row; what a row gets depends on its own tokens and seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.base.devices import send
from hilora.engine.kernels.gumbel import gumbel_rows

if TYPE_CHECKING:
    from hilora.engine.request import Request

Process = Callable[[Any, Any], Any]
"""(tokens (1, seq), scores (1, vocabulary)) -> scores, as transformers' processors take them."""


def draw_key(seed: int, text: str, answer: int) -> int:
    """128 bits of a draw's own: of a seed, a prompt, and which of its answers."""
    digest = hashlib.blake2b(f"{seed}\0{answer}\0{text}".encode(errors="surrogatepass"), digest_size=16)
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, eq=False)
class Pick:
    """How the tokens of one answer are chosen.

    Attributes:
        processes: what changes scores, given the row's tokens.
        warp: what shapes the distribution that tokens are drawn from, and reads no tokens; None takes the likeliest.
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

    @property
    def kind(self) -> tuple[int, ...]:
        """Tells apart what shapes distributions in other ways; `sampling.warpers_of` makes like ones of the same."""
        return tuple(map(id, self.warp)) if isinstance(self.warp, list) else (id(self.warp),)

    def __call__(self, request: Request, logits: Float[Tensor, " vocabulary"]) -> int:
        """The next token of a row."""
        scores = shaped([(self, request)], [logits])
        return int((scores if self.warp is None else scores + _noise([(self, request)], scores)).argmax())


Row = tuple[Pick, "Request"]


def pick_tokens(requests: Sequence[Request], logits: Float[Tensor, "row vocabulary"]) -> list[int]:
    """The next token of each row; from a GPU those of all rows come in one transfer."""
    live = [(row, request) for row, request in enumerate(requests) if not request.ended]
    barred = {row: list(request.pick.barred(len(request.new))) for row, request in live}
    if any(barred.values()):  # of all rows in one go: a vocabulary is long
        logits = logits.clone()
        for row, ends in barred.items():
            _bar(logits[row], ends)
    own = [(row, each) for row, each in live if not barred[row] and not each.pick.is_plain(len(each.new))]
    groups: dict[Any, dict[int, Row]] = {}
    for row, request in own:
        if isinstance(pick := request.pick, Pick):
            alike = pick.kind if logits.device.type == "cuda" else row  # on a CPU launches cost nothing
            groups.setdefault((pick.warp is None, alike), {})[row] = pick, request
    ordered = [groups[kind] for kind in sorted(groups, key=lambda kind: kind[0])]  # those that are drawn come first
    chosen = _chosen(ordered, logits) if ordered else logits.new_empty(0, dtype=torch.long)
    found: list[int] = torch.cat([logits.argmax(-1), chosen]).tolist()
    tokens = found[: len(logits)]
    for row, token in zip((row for rows in ordered for row in rows), found[len(logits) :], strict=True):
        tokens[row] = token
    for row, request in own:
        if not isinstance(request.pick, Pick):
            tokens[row] = request.pick(request, logits[row])
    return tokens


def _chosen(groups: Sequence[dict[int, Row]], logits: Float[Tensor, "row vocabulary"]) -> Int[Tensor, " chosen"]:
    """The next tokens of groups of rows that are warped alike, one after the other."""
    found = [shaped([*rows.values()], [logits[row] for row in rows]) for rows in groups]
    scores = torch.cat(found) if len(found) > 1 else found[0]
    if drawn := [row for rows in groups for row in rows.values() if row[0].warp is not None]:
        scores[: len(drawn)] += _noise(drawn, scores)
    return scores.argmax(-1)


def shaped(rows: Sequence[Row], logits: Sequence[Float[Tensor, " vocabulary"]]) -> Float[Tensor, "row vocabulary"]:
    """What the next tokens of rows that are warped alike are the largest of, but for the noise; fp32."""
    scores = torch.stack(list(logits)).float()
    for (pick, request), own in zip(rows, scores.split(1), strict=True):
        if len(request.new) < pick.least:
            _bar(own[0], pick.ends)
        if pick.processes:
            tokens, found = send(torch.tensor([[*request.ids, *request.new]]), scores.device), own
            for process in pick.processes:
                found = process(tokens, found)
            own.copy_(found)
    warp = rows[0][0].warp
    if warp is None:
        return scores
    nothing = torch.empty(len(rows), 0, dtype=torch.long, device=scores.device)
    return torch.log_softmax(warp(nothing, scores), dim=-1)


def _noise(rows: Sequence[Row], scores: Float[Tensor, "_ vocabulary"]) -> Float[Tensor, "row vocabulary"]:
    positions = [len(request.new) for _, request in rows]
    return gumbel_rows([pick.key for pick, _ in rows], positions, scores.shape[1], scores.device)


def _bar(logits: Float[Tensor, " vocabulary"], tokens: Sequence[int]) -> None:
    """Make tokens impossible; one by one, for a list of them would be sent to a GPU, and waited for."""
    for token in tokens:
        logits[token] = -torch.inf
