"""Laws of ends: a row says what the tokenizer means, up to where it ends, however its text falls into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hilora.base.answers import Answer, Ends, Reading

SPECIAL = ["<pad>", "<eos>", "<unk>", "<|end|>"]
TEXTS = [
    "naïve café 🙂 end, the end. 日本語 x",
    "  two blanks\nand a line",
    "e\u0301 🙂🙂",
    "don ' t stop , not yet .",
]


def byte_level() -> Any:
    """One token a byte, and some of several that begin or end inside a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    raw = Tokenizer(
        models.BPE(vocabulary | {"©e": len(vocabulary), "ðŁ": len(vocabulary) + 1}, [("©", "e"), ("ð", "Ł")])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return fast(raw)


def sentencepiece() -> Any:
    """Blanks as ▁, the first one taken away, and bytes for what has no token."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz.,'", "▁the", "end"]
    vocabulary = {token: i for i, token in enumerate(pieces)}
    raw = Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=False, ignore_merges=True)
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always", split=False), pre_tokenizers.Split("", "isolated")]
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(raw)


def word_pieces() -> Any:
    """Words with blanks between; the tokenizer takes some away again, also before what comes last."""
    words = [*SPECIAL, "[UNK]", "don", "'", "t", "stop", ",", "not", "yet", ".", "the", "end", "##s", "n't"]
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return fast(raw, clean_up_tokenization_spaces=True)


def joined_late() -> Any:
    """A decoder that rewrites across tokens: what one says depends on the next."""
    raw = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *"abcdefn ,.'toy"])}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("no", "N"), decoders.Replace("et", "E")])
    return fast(raw)


def fast(raw: Any, **options: Any) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **options
    )
    made.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    return made


KINDS = {f.__name__: f() for f in (byte_level, sentencepiece, word_pieces, joined_late)}


@pytest.fixture(params=KINDS)
def tokenizer(request: Any) -> Any:
    return KINDS[request.param]


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def stream(reading: Reading, tokens: Sequence[int]) -> list[str]:
    """What is given out after each token, and at the end."""
    given = []
    for token in tokens:
        reading.feed(token)
        given.append(reading.ready())
    return [*given, reading.answer().text]


@pytest.mark.parametrize("text", TEXTS)
def test_a_row_without_an_end_says_what_the_tokenizer_decodes(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Ends(tokenizer, [1]).read(tokens).answer() == Answer(decode(tokenizer, tokens), "length", len(tokens))


@pytest.mark.parametrize("text", TEXTS)
def test_an_end_token_of_any_kind_ends_the_row_and_is_no_part_of_it(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for end in [1, 3, *tokens[2:]]:
        place = ([*tokens, end]).index(end)
        for ends in ([end], [end, 1]):
            answer = Ends(tokenizer, ends).read([*tokens, end, *tokens, 0, 0]).answer()
            assert answer == Answer(decode(tokenizer, tokens[:place]), "stop", place)


@pytest.mark.parametrize("text", TEXTS)
def test_any_part_of_the_text_ends_it_where_it_first_stands(tokenizer: Any, text: str) -> None:
    """However the text falls into tokens: the stop text may begin and end inside of one."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = decode(tokenizer, tokens)
    stable = "'" not in whole  # else what is said may change
    for start in range(len(whole)):
        for length in (1, 2, 5):
            stop = whole[start : start + length]
            answer = Ends(tokenizer, [1], [stop]).read([*tokens, 1]).answer()
            assert answer.finish_reason == "stop"
            assert stop not in answer.text
            if stable and tokenizer is not KINDS["joined_late"]:
                assert answer.text == whole[: whole.find(stop)]
                assert decode(tokenizer, tokens[: answer.tokens]).startswith(answer.text + stop)
                assert stop not in decode(tokenizer, tokens[: answer.tokens - 1]).rstrip("\ufffd")


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_stop_text_may_be_a_special_token_or_hold_one(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place in range(1, len(tokens)):
        row = [*tokens[:place], 3, *tokens[place:]]
        want = decode(tokenizer, tokens[:place])
        assert Ends(tokenizer, [1], ["<|end|>"]).read(row).answer() == Answer(want, "stop", place + 1)
        full = tokenizer.decode(row[: place + 1])
        blank = full.removesuffix("<|end|>")[-2:]  # the stop text begins in the token before
        if "\ufffd" not in full and want.endswith(blank) and full.count(blank + "<|end|>") == 1:
            answer = Ends(tokenizer, [1], [blank + "<|end|>"]).read(row).answer()
            assert (answer.text, answer.finish_reason) == (want.removesuffix(blank), "stop")
            chat = Ends(tokenizer, [1, 3], [blank + "<|end|>"]).read(row).answer()  # that is the end token, too
            assert (chat.text, chat.tokens) == (want.removesuffix(blank), place)
    assert Ends(tokenizer, [1], ["<|end|>"]).read(tokens).answer().finish_reason == "length"


def test_a_part_of_a_special_tokens_name_ends_nothing() -> None:
    """The text that is given out does not hold it."""
    tokenizer = KINDS["byte_level"]
    tokens = tokenizer("ab", add_special_tokens=False)["input_ids"]
    row = [tokens[0], 3, tokens[1]]
    assert Ends(tokenizer, [1], ["end", "|"]).read(row).answer() == Answer("ab", "length", 3)
    assert Ends(tokenizer, [1], ["ab"]).read(row).answer() == Answer("", "stop", 3)  # which it does hold


def test_half_a_character_is_no_stop_text_while_it_may_become_whole() -> None:
    tokenizer = KINDS["byte_level"]
    tokens = tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    ends = Ends(tokenizer, [1], ["\ufffd"])
    assert ends.read(tokens).answer() == Answer("a🙂b", "length", len(tokens))
    assert ends.read(tokens[:2]).answer().text == "a"
    broken = [*tokens[:2], tokens[-1]]
    assert ends.read(broken).answer() == Answer("a", "stop", 3)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stops", [[], ["end"], ["<|end|>"], ["d<|end|>", "t<|end|>e"], ["🙂", "t s"]], ids=str)
def test_what_is_given_out_early_is_how_the_answer_begins(tokenizer: Any, text: str, stops: list[str]) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place in range(0, len(tokens) + 1, 3):
        for row in ([*tokens[:place], 3, *tokens[place:]], tokens[:place]):
            given = stream(Reading(Ends(tokenizer, [1], stops)), row)
            assert all(later.startswith(early) for early, later in pairwise(given))
    if not stops and tokenizer is KINDS["byte_level"]:
        assert given[-3] != ""  # it does not wait for the end


def test_readings_part_where_they_are_forked() -> None:
    tokenizer = KINDS["byte_level"]
    tokens = tokenizer("abcd", add_special_tokens=False)["input_ids"]
    one = Ends(tokenizer, [1], ["cd"]).read(tokens[:3])
    other = one.fork()
    one.feed(tokens[3])
    other.feed(tokens[0])
    assert (one.ended, other.ended) == (True, False)
    assert (one.answer().text, other.answer().text) == ("ab", "abca")


def test_the_cost_of_a_token_does_not_grow_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["byte_level"]
    ends, sizes = Ends(tokenizer, [1], ["zz"]), []
    original: Callable[..., str] = ends.decode
    monkeypatch.setattr(
        ends, "decode", lambda tokens, *a, **k: sizes.append(len(tokens)) or original(tokens, *a, **k)
    )
    reading = Reading(ends)
    for token in tokenizer("a" * 500, add_special_tokens=False)["input_ids"]:
        reading.feed(token)
    assert max(sizes) <= ends.width < 40
