"""Laws of what is routed on: a short last message with what it follows, long texts without their middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hilora.base import encoders
from hilora.base.asked import look, shorten
from hilora.base.embed import Embedder, Remembering
from hilora.base.prompts import query_text
from hilora.base.turns import LETTERS, SHORT, Size, num_routed_on, size_of
from hilora.errors import InputError

FULL = "Is the second of these two sentences a paraphrase of the first one, or is it not?"
OTHER = "Translate what stands below to German, word by word and without any comment: the cat sat on the mat."
SHORT_ONES = ["yes, go on", "and the second one?", "why?", "word " * SHORT]


def chat(*said: str, system: str = "Be brief.") -> list[dict[str, str]]:
    """User messages with an answer between each two."""
    turns = [{"role": "system", "content": system}]
    for text in said:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    return turns[:-1]


@pytest.fixture
def reader(tmp_path: Path, tiny: Any) -> Embedder:
    """A tiny BERT that reads 32 tokens; a character is a token."""
    return Embedder(str(tiny.bert(tmp_path)), instruction="say")


@pytest.mark.parametrize("short", SHORT_ONES)
def test_a_short_last_message_is_routed_on_with_the_one_it_follows(short: str) -> None:
    assert query_text(chat(FULL, short)) == f"{FULL}\n{short}"
    assert query_text(chat(OTHER, FULL, short)) == f"{FULL}\n{short}"
    assert query_text(chat(OTHER, FULL, "why?", short)) == f"{FULL}\nwhy?\n{short}"
    assert query_text(chat("Hi", short)) == f"Hi\n{short}"


def test_a_full_last_message_is_routed_on_alone() -> None:
    assert query_text(chat(OTHER, FULL)) == FULL
    assert query_text(chat(OTHER, "why?", "word " * (SHORT + 1))) == "word " * (SHORT + 1)


@pytest.mark.parametrize("task", ["12 + 34 = ?", "Segment: " + "thecatsatonthemat" * 3, "x" * (LETTERS * SHORT + 1)])
def test_a_sum_or_an_unbroken_string_is_a_task_of_its_own(task: str) -> None:
    assert query_text(chat(FULL, task)) == task
    assert query_text(chat(FULL, "and number 2?")) == f"{FULL}\nand number 2?"


@pytest.mark.parametrize("text", [*SHORT_ONES, FULL, "  as it\n is "])
def test_what_stands_alone_is_routed_on_as_it_is(text: str) -> None:
    assert query_text(text) == query_text([{"role": "user", "content": text}]) == text


def test_blank_messages_in_between_are_no_part_of_it() -> None:
    assert query_text(chat(FULL, " \n", "why?")) == f"{FULL}\nwhy?"
    with pytest.raises(InputError, match="prompt is empty"):
        query_text(chat(FULL, " "))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is the capital?", 4),
        ("  \n", 0),
        ("法国的首都是哪里", 8),
        ("ข้าว", 4),
        ("2 + 3 = ?", 5),
        ("Paris 是 nice", 3),
        ("수도는 어디입니까?", 2),
    ],
)
def test_words_are_counted_in_every_script(text: str, words: int) -> None:
    assert size_of(text).words == words


def test_numbers_are_counted_whole() -> None:
    assert size_of("3.5 times 1,000, then 7.").numbers == 3
    assert size_of(" a b\n") == Size(2, 3, 0)


@pytest.mark.parametrize(
    ("words", "count"), [([20, 3], 2), ([20, 30], 1), ([20, 30, 1], 2), ([1, 1, 1], 3), ([9], 1), ([1], 1)]
)
def test_chats_are_looked_back_to_a_full_message(words: list[int], count: int) -> None:
    assert num_routed_on([Size(n, n, 0) for n in words]) == count


def test_a_text_that_fits_is_left_as_it_is(reader: Embedder) -> None:
    assert reader.spans is not None
    assert reader.room == 32 - 2 - len(reader.spans("say: "))
    longest = "a" * reader.room
    for text in ("a", "  a \n\n b ", longest):
        assert shorten(text, reader) == (text, 0)
        assert torch.equal(look([text], reader).embedding, reader([text]))  # type: ignore[arg-type]
    assert shorten(longest + "a", reader)[1] > 0


def test_of_a_text_that_is_too_long_both_ends_are_read(reader: Embedder) -> None:
    text = "b c " + "a " * 90 + "x y z"
    kept, left_out = shorten(text, reader)
    assert kept.startswith("b c")
    assert kept.endswith("x y z")
    assert reader.spans is not None
    assert len(text) - left_out == len(kept) - len("\n")
    assert len(reader.spans(kept)) <= reader.room
    assert not torch.allclose(reader([kept]), reader([text]))


@pytest.mark.parametrize("by", ["plain", "transformers"])
def test_every_encoder_tells_where_tokens_stand(by: str, tmp_path: Path, tiny: Any, monkeypatch: Any) -> None:
    if by == "transformers":
        monkeypatch.setattr(encoders, "can_read", lambda *_: False)
    embedder = Embedder(str(tiny.bert(tmp_path)), instruction="")
    assert embedder.room == 30
    assert embedder.spans is not None
    text = "ab" * 40
    assert [text[start:end] for start, end in embedder.spans(text)] == list(text)
    assert shorten(text, Remembering(embedder)) == shorten(text, embedder) != (text, 0)


def test_a_note_is_said_of_what_was_left_out_or_joined_and_only_then(reader: Embedder) -> None:
    long = "a " * 90
    prompts = ["a", chat("Hi there"), chat(OTHER[:20], "a " * 12), long, chat("a b c", "why?"), chat(long, "why?")]
    said = look(prompts, reader).said
    assert said[:3] == ["", "", ""]
    assert "first and last words" in said[3]
    assert "user messages" not in said[3]
    assert said[4] == "routed on the last 2 user messages together"
    assert "last 2 user messages" in said[5]
    assert "left out" in said[5]
    assert look(prompts, reader).notes(["no adapter fits"] * 6)[3:4] == [f"no adapter fits; {said[3]}"]
    assert look(prompts, None).said == [""] * 6


def test_an_embedder_of_ones_own_is_given_the_whole_text(embedder: Any) -> None:
    text = "a " * 2000
    asked = look([text], embedder)
    assert (asked.texts, asked.said) == ([text], [""])
