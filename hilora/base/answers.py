"""What ends an answer, and what it says: one object per row, fed token by token.

Cutting, the reason for the end, streaming and the rows that leave a batch all ask it, so that they cannot disagree.
Stop texts are looked for in the text that is given out, which has no special tokens; those that hold a special token
(`<|im_end|>`) in the text with all tokens. What the last few tokens seem to hold is confirmed in all of them, decoded
at once: decoders join bytes to characters and tokens to words, and only the whole text is what the tokenizer means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""
BYTES = 4
"""Most bytes, and so most tokens, of a character."""
MARGIN = 16
"""Tokens before those that may hold a stop text: what decoders do to the first ones (blanks, bytes) stays there."""


@dataclass(frozen=True)
class Answer:
    """What a row's new tokens say: its text, "stop" or "length", and how many tokens that took."""

    text: str
    finish_reason: str
    tokens: int


class Ends:
    """What ends the answers of a call.

    Args:
        tokenizer: of the model.
        tokens: the end tokens; an answer has none of them.
        stops: texts that end an answer and are no part of it. They may be special tokens, or hold some.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.tokens, self.stops = tokenizer, frozenset(tokens), tuple(dict.fromkeys(stops))
        added = tokenizer.added_tokens_decoder
        self.special = {*tokenizer.all_special_ids, *(token for token, text in added.items() if text.special)}
        marks = [str(tokenizer.convert_ids_to_tokens(token)) for token in self.special]
        self.marked = [stop for stop in self.stops if any(mark in stop for mark in marks)]
        self.width = BYTES * max(map(len, self.stops), default=0) + MARGIN

    def decode(self, tokens: Sequence[int], marks: bool = False) -> str:
        """Text of tokens, with or without the special ones."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not marks))

    def may_stop(self, tokens: Sequence[int], shown: Sequence[int]) -> bool:
        """Whether the last tokens, or the last ones that are not special, hold a stop text."""
        text = self.decode(shown[-self.width :])
        if any(stop in text for stop in self.stops):
            return True
        full = self.decode(tokens[-self.width :], marks=True) if self.marked else ""
        return any(stop in full for stop in self.marked)

    def cut(self, tokens: Sequence[int], last: Sequence[int] = (), spare: str = "") -> str | None:
        """The text before the first stop text; None if there is none.

        Args:
            tokens: of the answer.
            last: the end token behind them, which may be part of a stop text.
            spare: characters that do not count at the end.
        """
        text = self.decode(tokens).rstrip(spare)
        found = [text[: text.find(stop)] for stop in self.stops if stop in text]
        if self.marked:
            full = self.decode([*tokens, *last], marks=True).rstrip(spare)
            found += [self.before(full.find(stop), full, tokens) for stop in self.marked if stop in full]
        return min(found, key=len, default=None)

    def before(self, place: int, full: str, tokens: Sequence[int]) -> str:
        """The text that is given out of what stands before a place in the text with all tokens."""
        for count in range(len(tokens), -1, -1):
            head = self.decode(tokens[:count], marks=True)
            if len(head) <= place and full.startswith(head):
                is_special = count < len(tokens) and tokens[count] in self.special
                return self.decode(tokens[:count]) + ("" if is_special else full[len(head) : place])
        return ""

    def read(self, tokens: Iterable[int]) -> Reading:
        """All of these tokens read."""
        reading = Reading(self)
        for token in tokens:
            reading.feed(token)
        return reading


class Reading:
    """One row's answer as it comes: fed token by token, it says whether it has ended, and the text so far.

    Args:
        ends: what ends it.
    """

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.tokens: list[int] = []
        self.ended = False
        self._shown: list[int] = []  # without special tokens
        self._cut: str | None = None
        self._known = 0  # shown tokens when it was last asked
        self._before = ""  # the text then
        self._stays = ""  # what of it the last of them has not changed

    def fork(self) -> Reading:
        """One that goes on from here by itself."""
        other = Reading(self.ends)
        other.tokens, other._shown, other.ended, other._cut = self.tokens[:], self._shown[:], self.ended, self._cut
        other._known, other._before, other._stays = self._known, self._before, self._stays
        return other

    def feed(self, token: int) -> None:
        """Take the next token; one behind the end changes nothing."""
        if self.ended:
            return
        if token in self.ends.tokens:
            self.ended, self._cut = True, self.ends.cut(self.tokens, [token]) if self.ends.stops else None
            return
        self.tokens.append(token)
        if token not in self.ends.special:
            self._shown.append(token)
        if self.ends.stops and self.ends.may_stop(self.tokens, self._shown):
            self._cut = self.ends.cut(self.tokens, spare=HALF)  # half a character may become any other
            self.ended = self._cut is not None

    def end(self) -> None:
        """Something else ends it here."""
        self.ended = True

    def answer(self) -> Answer:
        """What it says if no token follows."""
        cut = self._cut
        if cut is None and self.ends.stops:
            cut = self.ends.cut(self.tokens)
        reason = "stop" if self.ended or cut is not None else "length"
        return Answer(self.ends.decode(self.tokens) if cut is None else cut, reason, len(self.tokens))

    def ready(self) -> str:
        """How the text begins, whatever follows. To be asked once a token: what the last one says may change."""
        if self.ended:
            return self.answer().text
        if len(self._shown) > self._known:
            text = self.ends.decode(self._shown).rstrip(HALF)
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, self._before, strict=False))
            self._stays = "".join(letter for letter, _ in alike)
            self._known, self._before = len(self._shown), text
        text = self._before
        sure = min(self._stays, text[: len(text) - _begun(text, self.ends.stops)], key=len)
        if self.ends.marked:
            full = self.ends.decode(self.tokens, marks=True).rstrip(HALF)
            begun = _begun(full, self.ends.marked)
            if begun:
                sure = min(sure, self.ends.before(len(full) - begun, full, self.tokens), key=len)
        return sure


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at a text's end may be the beginning of a stop text."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
