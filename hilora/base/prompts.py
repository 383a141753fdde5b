"""Prompts as the base model reads them: one place for train, generate, evaluate and serve.

A prompt is a text, or chat messages as `[{"role": "user", "content": "..."}]`. The base model's chat
template is applied (one user turn for a text; see `chat`); where it has none, the text goes in as it is. The router
sees only raw text: the last user message, and where that is short those before it (see `turns`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hilora.base.chat import render
from hilora.base.turns import num_routed_on, size_of
from hilora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Messages = Sequence[dict[str, str]]
Prompt = str | Messages
Prompts = Sequence[Prompt]
Names = Sequence[str] | Sequence[Sequence[str]] | None
"""Adapter names: one list for all prompts, or one list per prompt."""
UNBOUNDED = 10**9
"""A context that a config says to be this long, or longer, is one without a bound."""


def query_text(prompt: Prompt) -> str:
    """What is routed on: the text itself; of a chat the messages of `query_turns`, one below the other.

    Raises:
        InputError: the prompt is empty, has half a character, or is no chat in the expected form.
    """
    return joined(query_turns(prompt))


def joined(turns: Sequence[str]) -> str:
    """Messages that are routed on together, as one text."""
    return "\n".join(turns)


def query_turns(prompt: Prompt) -> list[str]:
    """The user messages that are routed on (`turns.num_routed_on`); a text is one.

    Raises:
        InputError: as `query_text`.
    """
    if isinstance(prompt, str):
        check_whole(prompt, "A prompt")
        said = [prompt]
    else:
        said = [text for role, text in _turns(prompt) if role == "user"]
    if not said:
        raise InputError("The chat has no message with role 'user' to route on. Add one.")
    if not said[-1].strip():
        raise InputError("The prompt is empty. Give some text to route on and to answer.")
    said = [text for text in said if text.strip()]
    if len(said) == 1:  # sizes would be read from the whole text, for nothing
        return said
    return said[-num_routed_on([size_of(text) for text in said]) :]


def query_texts(prompts: Sequence[Prompt]) -> list[str]:
    """What the router embeds of each prompt.

    Raises:
        InputError: as `query_text`; says which prompt it is.
    """
    return each_of(prompts, query_text)


def each_of(prompts: Sequence[Prompt], read: Callable[[Prompt], T]) -> list[T]:
    """What is read of each prompt; what is refused is named by the prompt's number, where there are several."""
    found = []
    for number, prompt in enumerate(prompts):
        try:
            found.append(read(prompt))
        except InputError as error:
            if len(prompts) == 1:
                raise
            raise InputError(f"Prompt {number}: {error}") from error
    return found


def _turns(chat: Messages) -> list[tuple[str, str]]:
    """(role, content) of each message of a chat."""
    try:
        turns = [(turn["role"], turn["content"]) for turn in chat]
    except (TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"A prompt is a text or a list of {{'role', 'content'}} messages; got {chat!r:.80}."
        ) from error
    for _, content in turns:
        if not isinstance(content, str):
            raise InputError(f"Message content must be a text; got {type(content).__name__}.")
        check_whole(content, "A prompt")
    return turns


def check_whole(text: str, what: str) -> None:
    """Refuse a text with half of a surrogate pair, as an emoji's "\\ud83d", which is no character.

    Args:
        text: any.
        what: it is, for the message: a prompt, a file and line.

    Raises:
        InputError: says where in the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
        near = text[max(0, place - 30) : place + 20]
        raise InputError(
            f"{what} has half a character ({text[place]!r}) at {place}, in {near!r}. No tokenizer reads it; the text "
            "was cut inside a surrogate pair. Give the whole character, or leave it out."
        ) from error


def model_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the base model reads, ready to be tokenised without further special tokens if templated.

    Raises:
        InputError: the template refuses the chat or leaves out a message, or the prompt has half a character.
    """
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    contents = [content for _, content in _turns(chat)]
    return render(chat, tokenizer) if tokenizer.chat_template else "\n".join(contents)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each prompt, unpadded; a template brings its special tokens itself."""
    texts = each_of(prompts, lambda prompt: model_text(prompt, tokenizer))
    encoded: Any = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)
    return [list(ids) for ids in encoded["input_ids"]]


def template_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name for how prompts are rendered: "plain", or a hash of the chat template."""
    template = tokenizer.chat_template
    if not template:
        return "plain"
    return "chat-" + hashlib.sha256(str(template).encode()).hexdigest()[:12]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a list; a text or a chat alone counts as one."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], dict) else listed


def as_texts(stop: str | Sequence[str] | None) -> list[str]:
    """Stop texts as a list.

    Raises:
        InputError: neither a text nor several.
    """
    if stop is not None and not isinstance(stop, Iterable):
        raise InputError(f"A stop text must be a text; got {stop!r:.80}.")
    return [stop] if isinstance(stop, str) else list(stop or ())


def per_prompt(what: str, names: Names, count: int) -> list[tuple[str, ...] | None]:
    """The list of names of each prompt.

    Raises:
        InputError: there are not as many lists as prompts, or a text stands for a list.
    """
    if isinstance(names, str):
        raise InputError(f"{what} is a list of adapter names; got the text {names!r}. Write [{names!r}].")
    if names is None:
        return [None] * count
    if all(isinstance(name, str) for name in names):
        return [tuple(str(name) for name in names)] * count
    if any(isinstance(name, str) for name in names):
        raise InputError(f"{what} mixes names and lists of names. Give one list for all prompts, or a list for each.")
    if len(names) != count:
        raise InputError(f"{what} holds {len(names)} lists for {count} prompts; give one each, or one for all.")
    return [tuple(listed) for listed in names]


def check_lengths(encoded: Sequence[list[int]], max_new_tokens: int, config: Any) -> None:
    """Refuse prompts that leave no room for the answer in the model's context.

    Raises:
        InputError: names the prompt, its length and the room there is.
    """
    limit = context_length(config)
    if limit is None or config.is_encoder_decoder:
        return
    for number, tokens in enumerate(encoded):
        if len(tokens) + max_new_tokens > limit:
            raise InputError(
                f"Prompt {number} has {len(tokens)} tokens; the base model's context of {limit} leaves "
                f"{limit - max_new_tokens} beside max_new_tokens={max_new_tokens}. Shorten it, or lower that."
            )


def context_length(config: Any) -> int | None:
    """Tokens of a base model's context, from its transformers config; None where it names no bound.

    A rotary embedding that is scaled reaches its original length times the factor. The original length is
    `original_max_position_embeddings`; where that is missing, `max_position_embeddings`. Where both are there and the
    latter is longer, it holds the factor already. Of layers that are scaled differently the shortest counts.
    """
    if callable(text := getattr(config, "get_text_config", None)):  # of a model that also reads images, say
        config = text(decoder=True)
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    limit = next(
        (int(length) for length in named if isinstance(length, int | float) and 0 < length < UNBOUNDED), None
    )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if limit is None or not isinstance(rope, dict):
        return limit
    nested = [each for each in rope.values() if isinstance(each, dict)]
    return min(_scaled(limit, each, config) for each in nested or [rope])


def _scaled(limit: int, rope: dict[str, Any], config: Any) -> int:
    """The context that one rotary embedding allows, given max_position_embeddings."""
    factor = rope.get("factor")
    if rope.get("rope_type", rope.get("type", "default")) in ("default", "mrope") or not factor:
        return limit
    found = (rope.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None))
    original = next((length for length in found if length), limit)
    return max(limit, int(original * factor))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills batches: the padding token, else the end token; the mask hides it."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return int(next((token for token in found if token is not None), 0))
