"""docs/serving-openai.md says what the code takes."""

from __future__ import annotations

from pathlib import Path

from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.completion_create_params import CompletionCreateParamsBase as Completion

from hilora.serve.openai.page import filled, tables
from hilora.serve.openai.parameters import CHAT, COMPLETION
from hilora.serve.openai.requests import ChatRequest, CompletionRequest

PAGE = Path(__file__).parents[3] / "docs" / "serving-openai.md"


def test_the_tables_are_those_of_the_code() -> None:
    text = PAGE.read_text()
    assert all(f"<!-- {name} -->" in text for name in tables())
    assert filled(text) == text, "run: python -m hilora.serve.openai.page docs/serving-openai.md"


def test_every_parameter_of_openais_is_taken_or_listed() -> None:
    for theirs, ours, lacking in ((Chat, ChatRequest, CHAT), (Completion, CompletionRequest, COMPLETION)):
        known = {*ours.model_fields, *lacking}
        assert sorted({*theirs.__annotations__} - known) == []
        assert not {*ours.model_fields} & {*lacking}
