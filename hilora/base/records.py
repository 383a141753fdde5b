"""What a line of data says: a prompt, and where there is one the answer to it, in the shapes that people have.

{"messages": [{"role": ..., "content": ...}, ...]}      a chat; its last message is the answer
{"conversations": [{"from": ..., "value": ...}, ...]}   the same in other words
{"inputs": ..., "targets": ...}                         texts
{"prompt": ..., "completion": ...}                      texts, or lists of messages
{"instruction": ..., "input": ..., "output": ...}       texts; the input, if there is any, follows a blank line
{"text": ...}                                           a prompt alone

Other fields of a line do not matter here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from hilora.base.prompts import Prompt, query_text
from hilora.errors import InputError
from hilora.jsonl import parse_line

Fields = Mapping[str, Any]
ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of who speaks."""


def _renamed(fields: Fields) -> Any:
    """The turns of `conversations` as messages; what is none is left, to be refused."""
    turns = fields["conversations"]
    if not (isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)):
        return turns
    named = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    return [{"role": ROLES.get(str(role), role), "content": content} for role, content in named]


def _instruction(fields: Fields) -> Any:
    """An instruction and what it is about."""
    parts = [fields["instruction"], fields.get("input") or ""]
    return "\n\n".join(filter(None, parts)) if all(isinstance(part, str) for part in parts) else parts


@dataclass(frozen=True)
class Shape:
    """How a line says a prompt and its answer.

    Attributes:
        field: a line that has it is of this shape.
        asked: fields -> the prompt; a whole chat where one field holds both.
        answer: the field of the answer; the same as `field` where one holds both, "" where there is none.
    """

    field: str
    asked: Callable[[Fields], Any]
    answer: str


SHAPES = (
    Shape("messages", itemgetter("messages"), "messages"),
    Shape("conversations", _renamed, "conversations"),
    Shape("inputs", itemgetter("inputs"), "targets"),
    Shape("prompt", itemgetter("prompt"), "completion"),
    Shape("instruction", _instruction, "output"),
    Shape("text", itemgetter("text"), ""),
)
"""The first that fits is taken: a line with a chat may have it as a text, too."""
ASKED = ", ".join(shape.field for shape in SHAPES)
ANSWERED = ", ".join(" + ".join(dict.fromkeys((s.field, s.answer))) for s in SHAPES if s.answer)


def prompt_of(fields: Any) -> Prompt:
    """The prompt of a line: a text, or a chat as it is.

    Raises:
        InputError: the line has none of the shapes, or something else than texts in it.
    """
    return _prompt(_shape(fields).asked(fields))


def pair_of(fields: Any) -> tuple[Prompt, str]:
    """The prompt of a line and its answer; of a chat all but the last message, and that one.

    A prompt of one user message is its text.

    Raises:
        InputError: the line has none of the shapes that have answers, or something else than texts in it.
    """
    shape = _shape(fields)
    asked = shape.asked(fields)
    answer: Any = fields.get(shape.answer)
    if shape.answer == shape.field:
        if not isinstance(asked, list):
            raise InputError(f"{shape.field} is a list of messages, got {type(asked).__name__}")
        asked, answer = asked[:-1], asked[-1:]
    if answer is None:
        raise InputError(f"there is no answer. Known: {ANSWERED}")
    target = _answer(answer)
    return _prompt(asked), target


def text_of(prompt: Prompt) -> str:
    """A text as it is, of a chat what is routed on (`prompts.query_text`)."""
    return prompt if isinstance(prompt, str) else query_text(prompt)


def sample_of(line: str, where: str) -> str:
    """The text that a line of samples is embedded by: of a chat what is routed on, of a plain line the line.

    Args:
        line: from `jsonl.numbered_lines`.
        where: its file and number, for the message.

    Raises:
        InputError: damaged JSON, or none of the shapes.
    """
    found = parse_line(line, where, plain=True)
    if isinstance(found, str):
        return found
    with_fields = {"messages": found} if isinstance(found, list) else found
    try:
        return text_of(prompt_of(with_fields))
    except InputError as error:
        expected = '{"inputs": "..."}, a chat or a string'
        raise InputError(f"{where}: expected {expected}, got {line:.60} ({error})") from error


def _shape(fields: Any) -> Shape:
    if not isinstance(fields, Mapping):
        raise InputError(f"this is no object. Known fields: {ASKED}")
    for shape in SHAPES:
        if fields.get(shape.field) is not None:
            return shape
    raise InputError(f"there is no prompt. Known: {ASKED}")


def _prompt(asked: Any) -> Prompt:
    """A text as it is, a chat once it is known to be one; of a single user message its text."""
    if isinstance(asked, str):
        return asked
    if not (isinstance(asked, list) and all(isinstance(turn, dict) for turn in asked)):
        raise InputError(f"a prompt is a text or a list of messages, got {json.dumps(asked):.40}")
    text = query_text(asked)
    return text if [turn["role"] for turn in asked] == ["user"] else asked


def _answer(answer: Any) -> str:
    """A text, or the text of a single message of the assistant."""
    if isinstance(answer, list):
        roles = [turn.get("role") if isinstance(turn, dict) else None for turn in answer]
        if roles != ["assistant"]:
            raise InputError(f"the answer is one message of the assistant, at the end; got roles {roles}")
        answer = answer[0].get("content")
    if not isinstance(answer, str):
        raise InputError(f"an answer is a text, got {type(answer).__name__}")
    return answer
