"""What a line says is the same in whatever shape people have it; what it does not say is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilora.base.records import SHAPES, pair_of, prompt_of
from hilora.errors import InputError
from hilora.evaluate.routing import read_samples as read_by_task
from hilora.evaluate.rows import load_rows
from hilora.pool.source import read_samples
from hilora.train.data import encode_examples, read_lines, write_samples


def turns(*spoken: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in spoken]


ASKED, ANSWERED = turns(("user", "ask")), turns(("assistant", "say"))
ALIKE: dict[str, dict[str, Any]] = {
    "messages": {"messages": ASKED + ANSWERED},
    "conversations": {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
    "chats in other words": {"conversations": ASKED + ANSWERED},
    "inputs": {"inputs": "ask", "targets": "say"},
    "prompt": {"prompt": "ask", "completion": "say"},
    "lists of messages": {"prompt": ASKED, "completion": ANSWERED},
    "instruction": {"instruction": "ask", "input": "", "output": "say"},
    "instruction alone": {"instruction": "ask", "output": "say"},
    "a chat and its text": {"text": "<user>ask", "messages": ASKED + ANSWERED, "inputs": None},
}


@pytest.mark.parametrize("shape", ALIKE)
def test_what_is_said_in_any_shape_is_the_same(shape: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(json.dumps(ALIKE[shape] | {"more": 1}) + "\n")
    assert read_lines(tmp_path / "lines.jsonl") == [{"inputs": "ask", "targets": "say"}]
    assert read_samples(tmp_path / "lines.jsonl") == ["ask"]
    (row,) = load_rows(tmp_path / "lines.jsonl")
    assert (row.inputs, row.targets) == ("ask", "say")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(ALIKE[shape] | {"task": "t"}))
    assert read_by_task(tmp_path / "tasks.jsonl") == {"t": ["ask"]}


def test_every_shape_of_the_table_is_tried_here() -> None:
    assert {key for row in ALIKE.values() for key in row} >= {shape.field for shape in SHAPES}


def test_what_an_instruction_is_about_follows_it() -> None:
    assert pair_of({"instruction": "Add.", "input": "1, 2", "output": "3"}) == ("Add.\n\n1, 2", "3")


def test_of_a_chat_the_model_reads_all_and_routing_sees_its_last_turns(tmp_path: Path, tokenizer: Any) -> None:
    chat = turns(("system", "s"), ("user", "one"), ("assistant", "1"), ("user", "two"))
    (tmp_path / "lines.jsonl").write_text(json.dumps({"messages": [*chat, *turns(("assistant", "2"))]}) + "\n")
    rows = read_lines(tmp_path / "lines.jsonl")
    assert rows == [{"inputs": chat, "targets": "2"}]
    (example,) = encode_examples(rows, tokenizer)
    assert len(example.prompt) == len("s\none\n1\ntwo")
    write_samples(rows, tmp_path / "samples.jsonl", 1, 0)
    assert read_samples(tmp_path / "samples.jsonl") == read_samples(tmp_path / "lines.jsonl") == ["one\ntwo"]
    assert prompt_of({"messages": chat}) == chat
    with pytest.raises(InputError, match=r"line 1: expected inputs and targets.*not a longer chat"):
        load_rows(tmp_path / "lines.jsonl")


def test_samples_may_be_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "samples.txt").write_text('first, of "many"\r\n\r\n"a JSON string"\r\n{"text": "c"}\r\n')
    assert read_samples(tmp_path / "samples.txt") == ['first, of "many"', "a JSON string", "c"]


NO_PAIR: dict[str, tuple[Any, str]] = {
    "a text": ({"text": "x"}, "no answer.*inputs . targets"),
    "no target": ({"inputs": "x", "target": "y"}, "no answer"),
    "another name": ({"question": "x", "answer": "y"}, "no prompt.*messages.*instruction"),
    "a number": ({"inputs": "x", "targets": 3}, "answer is a text, got int"),
    "a prompt that is a number": ({"inputs": 3, "targets": "x"}, "text or a list of messages, got 3"),
    "a chat without an answer": ({"messages": ASKED}, "user"),
    "a chat that ends with a question": ({"messages": ANSWERED + ASKED}, "user"),
    "two answers": ({"prompt": ASKED, "completion": ANSWERED + ANSWERED}, "one message of the assistant"),
    "no list": ({"messages": "x"}, "list of messages, got str"),
    "a list": (["x", "y"], "no object"),
    "turns that are none": ({"conversations": ["x", "y"]}, "roles"),
    "an input that is a list": ({"instruction": "x", "input": ["y"], "output": "z"}, "messages"),
}


@pytest.mark.parametrize("shape", NO_PAIR)
def test_a_line_that_is_no_example_is_refused_by_its_number_and_why(shape: str, tmp_path: Path) -> None:
    row, why = NO_PAIR[shape]
    (tmp_path / "lines.jsonl").write_text(json.dumps(ALIKE["inputs"]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"lines.jsonl, line 2: expected .*inputs.*{why}"):
        read_lines(tmp_path / "lines.jsonl")
