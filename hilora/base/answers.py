"""Generated token ids -> text, and why it ends there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilora.base.prompts import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What a row's new tokens say: its text, "stop" or "length", and how many tokens that took."""

    text: str
    finish_reason: str
    tokens: int


def read_answer(new: Sequence[int], model: Any, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Answer:
    """Cut one row's new tokens at the end token, or before the first stop text.

    Args:
        new: token ids behind the prompt, padded.
        model: what generated them.
        tokenizer: its tokenizer.
        stops: texts that end an answer.
    """
    new = list(new[1:] if model.config.is_encoder_decoder else new)  # without the decoder's start token
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    length = next((i for i, token in enumerate(new) if token in ends), None)
    kept = new if length is None else new[:length]
    while kept and kept[-1] == pad_id(tokenizer):  # behind a stop text, while others went on
        kept = kept[:-1]
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    cut = min((text.find(stop) for stop in stops if stop in text), default=None)
    if cut is not None:
        text = text[:cut]
    return Answer(text, "length" if length is None and cut is None else "stop", len(kept))
