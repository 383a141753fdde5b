"""Hashed n-grams against plain loops, and the laws that a pool's stored counts lean on."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.route.features import (
    BUCKETS,
    CHARACTERS,
    LONGEST,
    WORDS,
    Features,
    Terms,
    hash_terms,
    join,
    join_terms,
    spans,
)

laws = settings(deadline=None, max_examples=60, derandomize=True)
letters = st.sampled_from(
    [*"abAB  .?1", "\n", "\t", "\u00a0", "\u00e9", "e\u0301", "\u4f60", "\U0001f600", "\ud83d", "\udc00"]
)
texts = st.lists(letters, max_size=30).map("".join) | st.text(max_size=30)
batches = st.lists(texts, max_size=6)

TEXTS = [
    "Premise: the dog ran. Hypothesis: a dog moved?",
    "",
    "the dog ran",
    "\n\n",
    "The dog ran",
    "\ud83d alone \U0001f600",
    "the dog ran",
    "aaaaaaaaaa",
]

SIZE = 2**64
STEP = 0x100000001B3
SPREAD = 0x9E3779B97F4A7C15


def hashed(symbols: Sequence[int]) -> int:
    """The 64-bit hash of one n-gram, in Python's integers. Pools hold such hashes: they may never change."""
    rolling = 0
    for symbol in symbols:
        rolling = (rolling * STEP + symbol + 1) % SIZE
    mixed = (rolling ^ rolling >> 29) * SPREAD % SIZE
    return (mixed ^ mixed >> 32) * SPREAD % SIZE


def ngrams(symbols: Sequence[Hashable], longest: int) -> list[tuple[Hashable, ...]]:
    return [tuple(symbols[i : i + n]) for n in range(1, longest + 1) for i in range(len(symbols) - n + 1)]


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]|\n", text)


def looped_characters(text: str) -> dict[int, int]:
    """Signed log counts of the buckets in use, one n-gram after another."""
    counts: Counter[int] = Counter()
    for gram in ngrams([ord(c) for c in re.sub(r"\s\s+", " ", text)], CHARACTERS):
        key = hashed(gram)  # type: ignore[arg-type]
        counts[key >> 53] += 1 if key >> 40 & 1 else -1
    return {b: int(math.copysign(min(round(16 * math.log1p(abs(c))), 127), c)) for b, c in counts.items() if c}


def looped_phrases(text: str) -> list[int]:
    words = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in tokens(text)]
    return sorted({hashed(gram) >> 33 for gram in ngrams(words, WORDS)})  # type: ignore[arg-type]


def characters_of(terms: Terms, row: int = 0) -> dict[int, int]:
    used = terms.characters[row].nonzero()[:, 0]
    return dict(zip(used.tolist(), terms.characters[row, used].tolist(), strict=True))


def phrases_of(terms: Terms, row: int = 0) -> list[int]:
    found: list[int] = terms.phrases[terms.text == row].tolist()
    return found


def same(one: Terms, other: Terms) -> bool:
    return all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and torch.equal(getattr(one, name), getattr(other, name))
        for name in ("characters", "phrases", "text")
    )


# what is counted


@laws
@given(texts)
def test_characters_are_the_loops_signed_log_counts(text: str) -> None:
    assert characters_of(hash_terms([text])) == looped_characters(text)


@laws
@given(texts)
def test_phrases_are_the_loops_ids_each_once_and_ascending(text: str) -> None:
    assert phrases_of(hash_terms([text])) == looped_phrases(text)


@pytest.mark.parametrize("text", TEXTS)
def test_terms_are_the_loops_for_these(text: str) -> None:
    terms = hash_terms([text])
    assert characters_of(terms) == looped_characters(text)
    assert phrases_of(terms) == looped_phrases(text)


def test_the_hashes_are_what_pools_hold_already() -> None:
    """If this fails, a change made every stored pool's terms worthless."""
    terms = hash_terms(["Is it so?"])
    assert terms.phrases.tolist()[:4] == [133760746, 291815847, 502169239, 752461492]
    assert list(characters_of(terms).items())[:5] == [(215, -11), (334, -11), (337, 18), (347, 11), (684, -11)]


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5, 6, 60, 400])
@pytest.mark.parametrize("vocabulary", [1, 3, 500])
def test_there_is_one_phrase_for_each_distinct_word_ngram(length: int, vocabulary: int) -> None:
    rng = np.random.default_rng([length, vocabulary])
    text = " ".join(f"w{i}" for i in rng.integers(0, vocabulary, length))
    assert len(hash_terms([text]).phrases) == len(set(ngrams(text.split(), WORDS)))


@laws
@given(st.lists(st.sampled_from(["a", "b", "A", "word", "?", ".", "\n", "\u0107ma"]), max_size=40))
def test_texts_have_a_phrase_in_common_for_each_common_ngram(words: list[str]) -> None:
    half = len(words) // 2
    terms = hash_terms([" ".join(words[:half]), " ".join(words[half:])])
    one, other = (set(ngrams(part, WORDS)) for part in (words[:half], words[half:]))
    assert len(set(phrases_of(terms, 0)) & set(phrases_of(terms, 1))) == len(one & other)


def test_equal_multisets_of_character_ngrams_are_equal_characters() -> None:
    """Whatever two texts are, nothing but their n-grams counts: here two parts between the same three letters."""
    one, other = "abcXXabc YYabc", "abc YYabcXXabc"
    assert Counter(ngrams(one, CHARACTERS)) == Counter(ngrams(other, CHARACTERS))
    assert one != other
    terms = hash_terms([one, other, one[:-1] + "d"])
    assert torch.equal(terms.characters[0], terms.characters[1])
    assert not torch.equal(terms.characters[0], terms.characters[2])
    assert phrases_of(terms, 0) != phrases_of(terms, 1)


def test_counts_past_the_largest_stay_the_largest() -> None:
    characters = hash_terms(["a" * 20_000]).characters[0]
    assert characters[characters != 0].abs().tolist() == [127] * CHARACTERS
    assert hash_terms(["a" * 500]).characters.abs().max() < 127


def test_case_matters() -> None:
    terms = hash_terms(["the dog", "The dog"])
    assert not torch.equal(terms.characters[0], terms.characters[1])
    assert len(set(phrases_of(terms, 0)) & set(phrases_of(terms, 1))) == 1  # "dog"


def test_a_run_of_whitespace_is_a_space_to_characters() -> None:
    terms = hash_terms(["a b", "a   b", "a \n\t b", "a\u00a0\r\nb", "a\n\nb", "a\nb", "ab"])
    for row in range(1, 5):
        assert torch.equal(terms.characters[row], terms.characters[0])
    for row in (5, 6):  # a single line break stays one
        assert not torch.equal(terms.characters[row], terms.characters[0])


def test_spaces_are_nothing_to_phrases_and_line_breaks_are_words() -> None:
    terms = hash_terms(["a b.", "  a \t\t b .  ", "a\nb.", "a \n\n b."])
    assert phrases_of(terms, 1) == phrases_of(terms, 0)
    assert len({tuple(phrases_of(terms, row)) for row in range(4)}) == 3


def test_the_empty_text_has_no_terms() -> None:
    terms = hash_terms(["", "a", "", " "])
    assert not terms.characters[[0, 2]].any()
    assert terms.text.tolist() == [1]


def test_no_text_is_no_terms() -> None:
    terms = hash_terms([])
    assert terms.characters.shape == (0, BUCKETS)
    assert (terms.phrases.shape, terms.text.shape) == ((0,), (0,))
    assert same(terms, hash_terms(["a", "b"]).take(torch.tensor([], dtype=torch.long)))


def test_lone_surrogates_and_emoji_are_characters_like_others() -> None:
    odd = ["\ud83d", "\ude00", "\U0001f600", "\U0001f601", "e\u0301", "\u00e9", "\x00", "\ufffd"]
    terms = hash_terms(odd)
    assert len({tuple(row) for row in terms.characters.tolist()}) == len(odd)
    assert len({tuple(phrases_of(terms, row)) for row in range(len(odd))}) == len(odd)
    assert all(phrases_of(terms, row) for row in range(len(odd)))


@pytest.mark.parametrize("over", [1, 2, 7, 1000])
def test_of_a_long_text_the_two_ends_are_looked_at(over: int) -> None:
    rng = np.random.default_rng(over)
    text = " ".join(rng.choice(["aa", "bb", "c", "dddd"], LONGEST))[: LONGEST + over]
    ends = text[: LONGEST // 2] + text[-(LONGEST // 2) :]
    assert len(ends) == LONGEST
    assert same(hash_terms([text]), hash_terms([ends]))
    assert not same(hash_terms([text[:LONGEST]]), hash_terms([text]))
    middle = LONGEST // 2 + over // 2
    assert same(hash_terms([text[:middle] + "X" + text[middle + 1 :]]), hash_terms([text]))


def test_a_text_of_many_megabytes_costs_no_more_than_its_ends() -> None:
    text = "".join(f"w{i} " for i in range(1_000_000))
    start = time.process_time()
    terms = hash_terms([text])
    assert time.process_time() - start < 2
    assert len(terms.phrases) <= WORDS * LONGEST


# texts do not touch each other


@laws
@given(batches)
def test_terms_depend_on_the_text_alone(batch: list[str]) -> None:
    together = hash_terms(batch)
    assert together.text.tolist() == sorted(together.text.tolist())
    for row, text in enumerate(batch):
        assert same(together.take(torch.tensor([row])), hash_terms([text]))


@laws
@given(st.data())
def test_taking_is_hashing_the_taken_texts(data: st.DataObject) -> None:
    batch = data.draw(st.lists(texts, min_size=1, max_size=6))
    index = data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=8))  # any order, some twice
    taken = hash_terms(batch).take(torch.tensor(index, dtype=torch.long))
    assert same(taken, hash_terms([batch[i] for i in index]))


@laws
@given(st.lists(batches, min_size=1, max_size=4))
def test_joining_is_hashing_all_texts(parts: list[list[str]]) -> None:
    whole = hash_terms([text for part in parts for text in part])
    assert same(join_terms([hash_terms(part) for part in parts]), whole)


def test_taking_twice_is_taking_from_what_was_taken() -> None:
    terms = hash_terms(TEXTS)
    first, second = torch.tensor([5, 0, 2, 2, 7]), torch.tensor([4, 1, 2])
    assert same(terms.take(first).take(second), terms.take(first[second]))


def test_hashing_taking_and_joining_change_nothing_they_were_given() -> None:
    batch = list(TEXTS)
    terms = hash_terms(batch)
    terms.take(torch.tensor([3, 1]))
    join_terms([terms, terms])
    assert batch == TEXTS
    assert same(terms, hash_terms(TEXTS))


# features


def features(count: int, terms: bool, seed: int = 0) -> Features:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return Features(vectors, hash_terms(TEXTS[seed : seed + count]) if terms else None)


@pytest.mark.parametrize("terms", [True, False])
def test_embeddings_and_terms_of_a_text_stay_together(terms: bool) -> None:
    parts = [features(3, terms, 0), features(0, terms, 3), features(4, terms, 3)]
    whole = join(parts)
    assert len(whole) == 7
    assert (whole.terms is None) == (not terms)
    index = [6, 0, 3, 3]
    taken = whole.take(torch.tensor(index))
    assert torch.equal(taken.embeddings, torch.cat([part.embeddings for part in parts])[index])
    if taken.terms is not None:
        assert same(taken.terms, hash_terms([TEXTS[i] for i in index]))


def test_texts_joined_with_one_without_terms_have_none() -> None:
    joined = join([features(2, True), features(2, False), features(1, True)])
    assert joined.terms is None
    assert len(joined) == 5


@laws
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_spans_are_the_ranges_one_after_another(pairs: list[tuple[int, int]]) -> None:
    starts, sizes = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    assert spans(starts, sizes).tolist() == [p for start, size in pairs for p in range(start, start + size)]


@laws
@given(batches, st.booleans())
def test_what_a_pool_stores_of_texts_comes_back(rows: list[str], worded: bool) -> None:
    texts = Features(torch.arange(2.0 * len(rows)).view(-1, 2), hash_terms(rows) if worded else None)
    found = Features.from_tensors(texts.tensors())
    assert torch.equal(found.embeddings, texts.embeddings)
    assert (found.terms is not None) == worded
    if found.terms is not None and texts.terms is not None:
        for name in ("characters", "phrases", "text"):
            assert torch.equal(getattr(found.terms, name), getattr(texts.terms, name))
    assert found.content_hash() == texts.content_hash()
