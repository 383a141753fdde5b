"""Prompts as the base model reads them: one place for train, generate, evaluate and serve.

A prompt is a text, or chat messages as `[{"role": "user", "content": "..."}]`. The base model's chat
template is applied (one user turn for a text); where it has none, the text goes in as it is. The router
sees only the raw text of the last user message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]
Prompt = str | Messages


def query_text(prompt: Prompt) -> str:
    """What the router embeds: the text itself, or the last user message.

    Raises:
        InputError: the prompt is empty, or no chat in the expected form.
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        try:
            turns = [turn["content"] for turn in prompt if turn["role"] == "user"]
        except (TypeError, KeyError) as error:
            raise InputError(
                f"A prompt is a text or a list of {{'role', 'content'}} messages; got {prompt!r:.80}."
            ) from error
        if not turns:
            raise InputError("The chat has no message with role 'user' to route on. Add one.")
        text = turns[-1]
        if not isinstance(text, str):
            raise InputError(f"Message content must be a text; got {type(text).__name__}.")
    if not text.strip():
        raise InputError("The prompt is empty. Give some text to route on and to answer.")
    return text


def model_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the base model reads, ready to be tokenised without further special tokens if templated."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each prompt, unpadded; a template brings its special tokens itself."""
    texts = [model_text(prompt, tokenizer) for prompt in prompts]
    encoded: Any = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)
    return [list(ids) for ids in encoded["input_ids"]]


def template_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name for how prompts are rendered: "plain", or a hash of the chat template."""
    template = tokenizer.chat_template
    if not template:
        return "plain"
    return "chat-" + hashlib.sha256(str(template).encode()).hexdigest()[:12]
