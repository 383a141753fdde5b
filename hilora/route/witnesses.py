"""Four witnesses to which adapter a prompt belongs to, each a likelihood; `experts` puts them on one scale.

meaning     tied Gaussian over the embeddings
spelling    tied Gaussian over TF-IDF weighted character n-grams
phrases     naive Bayes over word n-grams: is each phrase of the prompt one that the adapter's samples used?
outline     the same over the marks of its outline: does it begin and end as the samples do, with signs like theirs?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.base.devices import at, send
from hilora.route.dual import DualGaussian
from hilora.route.features import Features, Terms, spans
from hilora.route.tied import TiedGaussian

SHRINKAGE = 0.3
"""Of the tied covariance of the embeddings; by cross-validation on the samples of the 48 tasks of RAMoLE."""
SPELLING_SHRINKAGE = 0.5
"""Of the tied covariance of the character n-grams; likewise."""


@runtime_checkable
class Witness(Protocol):
    """A likelihood for every adapter, up to a term that is the same for all."""

    def fit(self, samples: Sequence[Features]) -> Witness:
        """Learn from the samples of each adapter."""
        ...

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, fp32, on the device of the embeddings or on the CPU."""
        ...


class Meaning:
    """A tied Gaussian over the embeddings, even-handed to adapters with few samples (`noise`)."""

    def fit(self, samples: Sequence[Features]) -> Meaning:
        """Learn means and the pooled covariance."""
        self.model_ = TiedGaussian(SHRINKAGE).fit([own.embeddings for own in samples])
        self.noise_ = noise(self.model_, samples)
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, where the embeddings are."""
        scores = self.model_.score(texts.embeddings)
        return scores * texts.embeddings.shape[1] + at(self.noise_, scores.device)


def noise(model: TiedGaussian | DualGaussian, samples: Sequence[Features]) -> Float[Tensor, " adapter"]:
    """What the log-likelihoods lack because means come from samples.

    The mean of n samples lies spread / n (whitened, squared) from the true one, and so much farther away seems every
    text: E |z - mean|^2 = |z - true mean|^2 + spread / n. Adapters with fewer samples would always lose.
    """
    return model.spread_ / 2 / torch.tensor([len(own) for own in samples])


class Spelling:
    """A tied Gaussian over TF-IDF vectors of character n-grams, of length 1; even-handed as `Meaning`."""

    def fit(self, samples: Sequence[Features]) -> Spelling:
        """Learn how common each n-gram is, then means and the pooled covariance."""
        counts = [terms_of(own).characters for own in samples]
        number = sum(len(c) for c in counts)
        used = torch.stack([(c != 0).sum(0) for c in counts]).sum(0)  # (bucket,)
        self.rarity_ = torch.log((1 + number) / (1 + used.double())) + 1
        # the same scores; in fp64, the dual gains nothing with more samples than half as many as there are buckets
        kind = DualGaussian if 2 * number <= len(used) else TiedGaussian
        self.model_ = kind(SPELLING_SHRINKAGE).fit([self.vectors(c) for c in counts])
        self.noise_ = noise(self.model_, samples)
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, where the embeddings are."""
        vectors = self.vectors(send(terms_of(texts).characters, texts.embeddings.device))
        scores = self.model_.score(vectors)
        return scores * vectors.shape[1] + at(self.noise_, scores.device)

    def vectors(self, characters: Tensor) -> Float[Tensor, "text bucket"]:
        """Counts of character n-grams, weighted by rarity, of length 1."""
        return torch.nn.functional.normalize(characters.double() * at(self.rarity_, characters.device), dim=1).float()


@dataclass
class Phrases:
    """Naive Bayes over the word n-grams that a text has, smoothed by how common they are in the pool.

    With n_i samples, n_it of them using phrase t, and p_t = (n_t + 1/2) / (N + 1) the share in the pool,
    P(t | i) = (n_it + strength p_t) / (n_i + strength). Phrases that no sample of the pool uses say nothing.

    Args:
        strength: weight of the pool's share, in samples.
    """

    strength: float = 1.0

    vocabulary_: Int[Tensor, " phrase"] = field(init=False, repr=False)
    start_: Int[Tensor, " bound"] = field(init=False, repr=False)
    adapter_: Int[Tensor, " entry"] = field(init=False, repr=False)
    gain_: Float[Tensor, " entry"] = field(init=False, repr=False)
    absent_: Float[Tensor, " adapter"] = field(init=False, repr=False)
    known_: Int[Tensor, " known"] | None = field(init=False, repr=False, default=None)  # an epoch's (`epoch`)
    total_: Float[Tensor, " known"] | None = field(init=False, repr=False, default=None)  # samples that use each
    count_: int = field(init=False, repr=False, default=0)  # of those samples
    common_: Any = field(init=False, repr=False, default=None)  # what many use, once it is looked for (`phrases`)

    def fit(self, samples: Sequence[Features]) -> Phrases:
        """Count the samples that use each phrase, by adapter."""
        self.vocabulary_, self.start_, phrase, self.adapter_, used, sizes = count_phrases(samples, self.listed)
        total = torch.zeros(len(self.vocabulary_)).index_add_(0, phrase, used.float())
        share = (total + 0.5) / (int(sizes.sum()) + 1)
        # relative to an adapter whose samples never use the phrase: log (n_it + s p_t) / (s p_t)
        self.gain_ = torch.log1p(used / (self.strength * share[phrase]))
        self.absent_ = torch.log(self.strength / (sizes + self.strength))
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, relative to the pool's; lists are the CPU's work."""
        place, text, number = self.asked(terms_of(texts), len(texts))
        starts = self.start_[place]
        sizes = self.start_[place + 1] - starts
        entries = spans(starts, sizes)
        cells = text.repeat_interleave(sizes) * len(self.absent_) + self.adapter_[entries]
        scores = torch.zeros(len(texts) * len(self.absent_), dtype=torch.float64)
        scores.index_add_(0, cells, self.gain_[entries].double())
        return (scores.view(len(texts), len(self.absent_)) + number[:, None] * self.absent_).float()

    def asked(self, terms: Terms, texts: int) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Tensor]:
        """Phrases that somebody's samples use, and the texts that they are of; of each text, how many all know of."""
        wanted, of = self.listed(terms)
        known = _contains(self.vocabulary_, wanted)
        text = common = of[known]
        if self.known_ is not None:  # what only some newcomers' samples use speaks for those, and for nobody else
            common = of[_contains(self.known_, wanted)]
        return torch.searchsorted(self.vocabulary_, wanted[known]), text, torch.bincount(common, minlength=texts)

    def listed(self, terms: Terms) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """Ids that are looked at, each once for a text, and the text of each, ascending."""
        return terms.phrases.long(), terms.text


class Outline(Phrases):
    """As `Phrases`, over the marks of outlines."""

    def listed(self, terms: Terms) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """Marks, and the text of each."""
        assert terms.outlines is not None
        texts, marks = terms.outlines.shape
        return terms.outlines.long().flatten(), torch.arange(texts).repeat_interleave(marks)


def terms_of(texts: Features) -> Terms:
    """The n-grams of texts that have some."""
    assert texts.terms is not None
    return texts.terms


def has_terms(own: Features) -> bool:
    """Whether the n-grams of an adapter's samples are kept."""
    return own.terms is not None


def has_outlines(own: Features) -> bool:
    """Whether the outlines of an adapter's samples are kept."""
    return own.terms is not None and own.terms.outlines is not None


def count_phrases(
    samples: Sequence[Features], listed: Callable[[Terms], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """How many of each adapter's samples use each phrase; `listed` as `Phrases.listed`.

    Returns:
        vocabulary: (phrase,) ids, ascending.
        start: (bound,) first entry of each phrase.
        phrase, adapter, used: (entry,) how many samples of an adapter use a phrase, by phrase, then adapter.
        sizes: (adapter,) samples of each.
    """
    ids = [listed(terms_of(own))[0] for own in samples]
    sizes = torch.tensor([len(own) for own in samples])
    owner = torch.arange(len(ids)).repeat_interleave(torch.tensor([len(each) for each in ids]))
    vocabulary, place = torch.unique(torch.cat(ids), return_inverse=True)
    pairs, used = torch.unique(place * len(ids) + owner, return_counts=True)
    phrase, adapter = pairs // len(ids), pairs % len(ids)
    return vocabulary, torch.searchsorted(phrase, torch.arange(len(vocabulary) + 1)), phrase, adapter, used, sizes


def _contains(vocabulary: Int[Tensor, " phrase"], wanted: Int[Tensor, " entry"]) -> Bool[Tensor, " entry"]:
    """Which ids a vocabulary has."""
    place = torch.searchsorted(vocabulary, wanted).clamp_max(max(len(vocabulary) - 1, 0))
    return vocabulary[place] == wanted if len(vocabulary) else torch.zeros_like(wanted).bool()
