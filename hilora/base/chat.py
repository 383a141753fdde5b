"""Chats as a base's template renders them, whose contents are texts for some and lists of parts for others.

A template that reads parts goes over a text letter by letter, finds no part in it, and says nothing. So each chat is
rendered twice: with marks around every content, to see that nothing was left out, and as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from hilora.base.models import first_line
from hilora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, Any]
KEPT = ("user", "system")
"""Whose words have to arrive whole: templates may cut the thoughts out of the model's own."""


def render(chat: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    """What the base model reads of a chat: its template's text, with the words of user and system in it.

    Contents are given as texts; those that this loses as parts; at last all of them.

    Raises:
        InputError: the template refuses the chat, or leaves out a message.
    """
    from jinja2 import TemplateError

    everywhere, parted = set(range(len(chat))), set[int]()
    refused: Exception | None = None
    fair: set[int] | None = None  # the form that loses nothing of user and system
    for _ in range(3):
        try:
            lost = _lost(chat, parted, tokenizer)
            if not lost:
                return _render(chat, parted, tokenizer)
            if fair is None and not any(chat[i]["role"] in KEPT for i in lost):
                fair = parted
        except (TemplateError, TypeError, AttributeError, ValueError, KeyError) as error:
            refused, lost = refused or error, everywhere
        if parted == everywhere:
            break
        parted = lost if not parted else everywhere
    if fair is not None:
        return _render(chat, fair, tokenizer)
    if refused is not None:
        raise InputError(f"The base model's chat template refuses the chat: {first_line(refused)}") from refused
    raise InputError(
        f"The base model's chat template leaves out a message of role {chat[min(lost)]['role']!r}, be it given as a "
        "text or as parts. Say it in the user's message, or choose another base."
    )


def _render(chat: Sequence[Turn], parted: Set[int], tokenizer: Any) -> str:
    """The chat, the contents of some turns as parts."""
    turns = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if i in parted else dict(turn)
        for i, turn in enumerate(chat)
    ]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _lost(chat: Sequence[Turn], parted: Set[int], tokenizer: Any) -> set[int]:
    """The turns of which something does not arrive, of the model's own all; or that arrive as a list is written."""
    marks = [(f"qzx{i}a", f"qzx{i}z") for i in range(len(chat))]
    marked = [{**turn, "content": a + turn["content"] + z} for turn, (a, z) in zip(chat, marks, strict=True)]
    text = _render(marked, parted, tokenizer)
    arrived = [(a in text) + (z in text) for a, z in marks]
    return {
        i
        for i, (turn, (start, _)) in enumerate(zip(chat, marks, strict=True))
        if arrived[i] < (2 if turn["role"] in KEPT else 1) or f"'text': '{start}" in text
    }
