"""Texts as routing sees them: an embedding, and counts of character and word n-grams under hashes.

The embedding says what a text is about; the n-grams say how it is worded, which is often what tells tasks apart (the
same question asked with another template, another language), and so does its outline. Texts themselves are never
kept. What hashed counts leak: whoever holds them can test whether a guessed phrase occurs in a sample, and can guess
common short ones.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from numpy.typing import NDArray
from torch import Tensor

from hilora.errors import InputError
from hilora.route.gaussian import MIN_SAMPLES
from hilora.route.outline import MARKS, TOKEN, outline

BUCKETS = 2048
"""Hash buckets of character n-grams."""
CHARACTERS = 4
"""Longest character n-gram."""
WORDS = 5
"""Longest word n-gram."""
LONGEST = 32768
"""Characters of a text that are looked at: its first and last half of so many."""

_SPACES = re.compile(r"\s\s+")
_BASE = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STEP = 16  # stored levels per unit of log(1 + count)


@dataclass(frozen=True)
class Terms:
    """Hashed n-grams of some texts.

    Attributes:
        characters: (text, bucket) signed log counts of character n-grams, in units of 1/16.
        phrases: (entry,) ids of word n-grams, each once for a text.
        text: (entry,) the text that an id belongs to, ascending.
        outlines: (text, mark) marks of each text's outline; None where the pool is of a time when none was kept.
    """

    characters: Int8[Tensor, "text bucket"]
    phrases: Int[Tensor, " entry"]
    text: Int[Tensor, " entry"]
    outlines: Int[Tensor, "text mark"] | None = None

    def take(self, index: Int[Tensor, " kept"]) -> Terms:
        """Some of the texts, in that order."""
        starts = torch.searchsorted(self.text, index)
        sizes = torch.searchsorted(self.text, index, right=True) - starts
        entries = spans(starts, sizes)
        text = torch.arange(len(index)).repeat_interleave(sizes)
        outlines = None if self.outlines is None else self.outlines[index]
        return Terms(self.characters[index], self.phrases[entries], text, outlines)


@dataclass(frozen=True)
class Features:
    """What routing knows of some texts: prompts, or the samples of one adapter.

    Attributes:
        embeddings: (text, dim) instructed embeddings.
        terms: hashed n-grams; None where the pool was not to keep them.
    """

    embeddings: Float[Tensor, "text dim"]
    terms: Terms | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, index: Int[Tensor, " kept"]) -> Features:
        """Some of the texts, in that order."""
        return Features(self.embeddings[index], None if self.terms is None else self.terms.take(index))

    def tensors(self) -> dict[str, Tensor]:
        """As a pool stores them."""
        if self.terms is None:
            return {"embeddings": self.embeddings}
        outlines = {} if self.terms.outlines is None else {"outlines": self.terms.outlines}
        return {
            "embeddings": self.embeddings,
            "characters": self.terms.characters,
            "phrases": self.terms.phrases,
            "phrases_of_text": torch.bincount(self.terms.text, minlength=len(self)).int(),
            **outlines,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Features:
        """What `tensors` made.

        Raises:
            KeyError: one of them is missing.
        """
        if "characters" not in tensors:
            return cls(tensors["embeddings"])
        sizes = tensors["phrases_of_text"].long()
        text = torch.arange(len(sizes)).repeat_interleave(sizes)
        terms = Terms(tensors["characters"], tensors["phrases"], text, tensors.get("outlines"))
        return cls(tensors["embeddings"], terms)

    def content_hash(self) -> str:
        """Of what a pool stores; names the file."""
        digest = hashlib.sha256()
        for tensor in self.tensors().values():
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def join(parts: Sequence[Features]) -> Features:
    """Texts of several parts, one after another; without terms if any part has none."""
    embeddings = torch.cat([part.embeddings for part in parts])
    terms = [part.terms for part in parts if part.terms is not None]
    return Features(embeddings, join_terms(terms) if len(terms) == len(parts) else None)


def join_terms(parts: Sequence[Terms]) -> Terms:
    """Terms of several parts, one after another; without outlines if any part has none."""
    outlines = [part.outlines for part in parts if part.outlines is not None]
    starts = np.cumsum([0, *(len(part.characters) for part in parts)])
    return Terms(
        torch.cat([part.characters for part in parts]),
        torch.cat([part.phrases for part in parts]),
        torch.cat([part.text + int(start) for part, start in zip(parts, starts, strict=False)]),
        torch.cat(outlines) if len(outlines) == len(parts) else None,
    )


def hash_terms(texts: Sequence[str]) -> Terms:
    """Hash the n-grams of texts, and mark their outlines; one to two milliseconds for a thousand words."""
    characters = np.zeros((len(texts), BUCKETS), dtype=np.int8)
    outlines = np.zeros((len(texts), MARKS), dtype=np.int32)
    phrases: list[NDArray[np.int32]] = []
    for row, text in enumerate(texts):
        short = text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]
        words = TOKEN.findall(short)
        characters[row], outlines[row] = _characters(short), outline(short, words)
        phrases.append(_phrases(words))
    sizes = [len(ids) for ids in phrases]
    return Terms(
        torch.from_numpy(characters),
        torch.from_numpy(np.concatenate(phrases) if phrases else np.zeros(0, np.int32)),
        torch.from_numpy(np.repeat(np.arange(len(texts), dtype=np.int64), sizes)),
        torch.from_numpy(outlines),
    )


def check_samples(embeddings: Float[Tensor, "sample dim"], name: str) -> None:
    """Refuse samples that no Gaussian can be fitted to.

    Raises:
        InputError: fewer than 2 samples, or NaN or infinite embeddings.
    """
    count = embeddings.shape[0]
    if count < 2:
        raise InputError(
            f"Adapter {name!r} has {count} sample(s); a Gaussian needs at least 2, and {MIN_SAMPLES} or more "
            f"(20 in the paper) to be any good. Give more lines in --samples."
        )
    if not torch.isfinite(embeddings).all():
        raise InputError(f"The embeddings of {name!r} contain NaN or infinite values; embed its samples again.")


def spans(starts: Int[Tensor, " span"], sizes: Int[Tensor, " span"]) -> Int[Tensor, " entry"]:
    """Positions start, start + 1, ... of every span, one span after another."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (starts - before).repeat_interleave(sizes)


def _characters(text: str) -> NDArray[np.int8]:
    codes = np.frombuffer(_SPACES.sub(" ", text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    keys = np.concatenate([*_ngrams(codes.astype(np.uint64), CHARACTERS)])
    signs = np.where(keys >> np.uint64(40) & np.uint64(1), 1.0, -1.0)
    counts = np.bincount((keys >> np.uint64(53)).astype(np.int64), weights=signs, minlength=BUCKETS)
    levels = np.rint(_STEP * np.log1p(np.abs(counts)))
    return np.asarray(np.sign(counts) * np.minimum(levels, 127), dtype=np.int8)


def _phrases(words: Sequence[str]) -> NDArray[np.int32]:
    codes = [zlib.crc32(word.encode(errors="surrogatepass")) for word in words]
    keys = np.concatenate([*_ngrams(np.array(codes, dtype=np.uint64), WORDS)])
    return np.unique(keys >> np.uint64(33)).astype(np.int32)


def _ngrams(symbols: NDArray[np.uint64], longest: int) -> list[NDArray[np.uint64]]:
    """Well mixed 64-bit hashes of all n-grams of 1 to `longest` symbols."""
    out, rolling = [], np.zeros(len(symbols), dtype=np.uint64)
    for length in range(1, longest + 1):
        end = max(0, len(symbols) - length + 1)
        rolling = rolling[:end] * _BASE + symbols[length - 1 :][:end] + np.uint64(1)
        mixed = (rolling ^ (rolling >> np.uint64(29))) * _MIX
        out.append((mixed ^ (mixed >> np.uint64(32))) * _MIX)
    return out
