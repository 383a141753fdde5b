"""Three witnesses to which adapter a prompt belongs to, each a likelihood, put on one scale by their samples.

    meaning     tied Gaussian over the embeddings
    spelling    tied Gaussian over TF-IDF weighted character n-grams
    phrases     naive Bayes over word n-grams: is each phrase of the prompt one that the adapter's samples used?

None of the three is calibrated: dimensions correlate and n-grams overlap, so each is far too sure of itself. The
score is their weighted product,

    log p(x | i) = sum_v w_v log p_v(x | i),

with the weights w that make samples' own adapters likeliest, on samples that the likelihoods have not seen: maximum
likelihood with three parameters, a convex problem. The softmax of the score is then a calibrated posterior.
A part of `hilora-plus`; not in the papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.route.conformal import own_surprises
from hilora.route.crossfit import folds
from hilora.route.features import Features, Terms, spans
from hilora.route.gaussian import TiedGaussian
from hilora.route.novelty import leads, seen_above

SHRINKAGE = 0.3
"""Of the tied covariance of the embeddings; by cross-validation on the samples of the 48 tasks of RAMoLE."""
SPELLING_SHRINKAGE = 0.5
"""Of the tied covariance of the character n-grams; likewise."""
WEIGHTS = {"meaning": 0.06, "spelling": 0.015, "phrases": 0.012}
"""Where nothing can be held out; near what is fitted for 20 samples per adapter."""
MOST_ADAPTERS = 200
"""The weights of larger pools are fitted on so many of their adapters, spread over the pool."""
MOST_SURPRISES = 1000
"""A pool keeps at most so many, evenly taken."""


class Witness(Protocol):
    """A likelihood for every adapter, up to a term that is the same for all."""

    def fit(self, samples: Sequence[Features]) -> Witness:
        """Learn from the samples of each adapter."""
        ...

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, fp32."""
        ...


class Meaning:
    """A tied Gaussian over the embeddings."""

    def fit(self, samples: Sequence[Features]) -> Meaning:
        """Learn means and the pooled covariance."""
        self.model_ = TiedGaussian(SHRINKAGE).fit([own.embeddings for own in samples])
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods."""
        return self.model_.score(texts.embeddings) * texts.embeddings.shape[1]


class Spelling:
    """A tied Gaussian over TF-IDF vectors of character n-grams, of length 1."""

    def fit(self, samples: Sequence[Features]) -> Spelling:
        """Learn how common each n-gram is, then means and the pooled covariance."""
        counts = [_terms(own).characters for own in samples]
        number = sum(len(c) for c in counts)
        used = torch.stack([(c != 0).sum(0) for c in counts]).sum(0)  # (bucket,)
        self.rarity_ = torch.log((1 + number) / (1 + used.double())) + 1
        self.model_ = TiedGaussian(SPELLING_SHRINKAGE).fit([self._vectors(c) for c in counts])
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods."""
        vectors = self._vectors(_terms(texts).characters)
        return self.model_.score(vectors) * vectors.shape[1]

    def _vectors(self, characters: Tensor) -> Float[Tensor, "text bucket"]:
        return torch.nn.functional.normalize(characters.double() * self.rarity_, dim=1).float()


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

    def fit(self, samples: Sequence[Features]) -> Phrases:
        """Count the samples that use each phrase, by adapter."""
        terms = [_terms(own) for own in samples]
        sizes = torch.tensor([len(own) for own in samples])
        phrases = torch.cat([t.phrases for t in terms]).long()
        owner = torch.arange(len(terms)).repeat_interleave(torch.tensor([len(t.phrases) for t in terms]))
        self.vocabulary_, place = torch.unique(phrases, return_inverse=True)
        pairs, used = torch.unique(place * len(terms) + owner, return_counts=True)  # by phrase, then adapter
        phrase, self.adapter_ = pairs // len(terms), pairs % len(terms)
        self.start_ = torch.searchsorted(phrase, torch.arange(len(self.vocabulary_) + 1))
        total = torch.zeros(len(self.vocabulary_)).index_add_(0, phrase, used.float())
        share = (total + 0.5) / (int(sizes.sum()) + 1)
        # relative to an adapter whose samples never use the phrase: log (n_it + s p_t) / (s p_t)
        self.gain_ = torch.log1p(used / (self.strength * share[phrase]))
        self.absent_ = torch.log(self.strength / (sizes + self.strength))
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log-likelihoods, relative to the pool's."""
        terms = _terms(texts)
        wanted = terms.phrases.long()
        place = torch.searchsorted(self.vocabulary_, wanted).clamp_max(max(len(self.vocabulary_) - 1, 0))
        known = self.vocabulary_[place] == wanted if len(self.vocabulary_) else torch.zeros_like(wanted).bool()
        place, text = place[known], terms.text[known]
        starts = self.start_[place]
        sizes = self.start_[place + 1] - starts
        entries = spans(starts, sizes)
        cells = text.repeat_interleave(sizes) * len(self.absent_) + self.adapter_[entries]
        scores = torch.zeros(len(texts) * len(self.absent_), dtype=torch.float64)
        scores.index_add_(0, cells, self.gain_[entries].double())
        number = torch.bincount(text, minlength=len(texts))  # known phrases of each text
        return (scores.view(len(texts), len(self.absent_)) + number[:, None] * self.absent_).float()


def _terms(texts: Features) -> Terms:
    assert texts.terms is not None
    return texts.terms


@dataclass
class Experts:
    """The weighted product of the witnesses.

    An adapter whose samples' terms are not kept is judged by its meaning alone: the share of the posterior that the
    embeddings give it stays as it is.

    Args:
        weights: of the witnesses; default: fitted on the samples.
        terms: whether to look at n-grams at all.
    """

    weights: Mapping[str, float] | None = None
    terms: bool = True

    weights_: Mapping[str, float] = field(init=False)
    worded_: Bool[Tensor, " adapter"] = field(init=False, repr=False)
    witnesses_: dict[str, Witness] = field(init=False, repr=False)

    def fit(self, samples: Sequence[Features]) -> Experts:
        """Fit the likelihoods, and their weights if none are given."""
        if self.weights is None:
            self.weights_ = fit_weights(samples, self.terms)
        else:
            self.weights_ = self.weights
        self.worded_ = torch.tensor([self.terms and own.terms is not None for own in samples])
        if int(self.worded_.sum()) < 2:
            self.worded_[:] = False  # nothing to compare with
        self.witnesses_ = {"meaning": Meaning().fit(samples)}
        if self.worded_.any():
            worded = [own for own, has in zip(samples, self.worded_.tolist(), strict=True) if has]
            self.witnesses_ |= {"spelling": Spelling().fit(worded), "phrases": Phrases().fit(worded)}
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log posterior of every adapter, up to a term that is the same for all; fp32."""
        scores = self.witnesses_["meaning"].score(texts) * self.weights_["meaning"]
        if len(self.witnesses_) == 1 or texts.terms is None:
            return scores
        found = [w.score(texts) * self.weights_[name] for name, w in self.witnesses_.items() if name != "meaning"]
        wording = found[0] + found[1]  # (text, worded adapter)
        expected = torch.logsumexp(torch.log_softmax(scores[:, self.worded_], dim=1) + wording, dim=1)
        out = scores + expected[:, None]
        out[:, self.worded_] = scores[:, self.worded_] + wording
        return out


def witness_scores(
    samples: Sequence[Features], terms: bool = True
) -> tuple[Int[Tensor, " held"], dict[str, Float[Tensor, "held adapter"]]]:
    """What each witness says of samples that it has not seen, and whose they are."""
    terms = terms and all(own.terms is not None for own in samples)
    owners: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {}
    for kept, held, owner in folds(samples):
        owners.append(owner)
        model = Experts(WEIGHTS, terms).fit(kept)
        for name, witness in model.witnesses_.items():
            scores.setdefault(name, []).append(witness.score(held))
    if not owners:
        return torch.empty(0, dtype=torch.long), {}
    return torch.cat(owners), {name: torch.cat(rows) for name, rows in scores.items()}


@dataclass(frozen=True)
class Calibration:
    """What the samples of a pool say about the scores of prompts that nothing was fitted on.

    Attributes:
        weights: of the witnesses.
        surprises: -log posterior of held-out samples' own adapters, for conformal sets (`conformal`).
        seen_above: the lead of the best adapter above which a prompt is called seen (`novelty`); None if unknown.
    """

    weights: Mapping[str, float]
    surprises: tuple[float, ...] = ()
    seen_above: float | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Calibration:
        """As a pool's manifest has it."""
        return cls(dict(found["weights"]), tuple(found["surprises"]), found["seen_above"])


def calibrate(samples: Sequence[Features], terms: bool = True) -> Calibration:
    """Weights, surprises and the seen threshold from the samples alone, cross-fitted.

    Large pools are judged on `MOST_ADAPTERS` of their adapters: their surprises are then those of a smaller pool.
    """
    if len(samples) < 2:
        return Calibration(dict(WEIGHTS))
    owner, scores = witness_scores(samples[:: -(-len(samples) // MOST_ADAPTERS)], terms)
    if not scores:
        return Calibration(dict(WEIGHTS))
    weights = _fit(owner, scores)
    posterior = sum_scores(scores, weights)
    surprise = own_surprises(posterior, owner)[:: -(-len(owner) // MOST_SURPRISES)]
    known = seen_above(leads(posterior).tolist())
    return Calibration(weights, tuple(round(s, 4) for s in surprise.tolist()), known)


def sum_scores(
    scores: Mapping[str, Float[Tensor, "text adapter"]], weights: Mapping[str, float]
) -> Float[Tensor, "text adapter"]:
    """The weighted sum of the witnesses' log-likelihoods."""
    return torch.stack([score * weights[name] for name, score in scores.items()]).sum(0)


def fit_weights(samples: Sequence[Features], terms: bool = True) -> dict[str, float]:
    """The weights that make held-out samples' own adapters likeliest; `WEIGHTS` where nothing can be held out."""
    return dict(calibrate(samples, terms).weights)


def _fit(owner: Tensor, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The witnesses' weights from what they say of held-out samples."""
    names = list(scores)
    stacked = torch.stack([scores[name].double() for name in names], dim=2)  # (held, adapter, witness)
    stacked = stacked - stacked.max(1, keepdim=True).values
    start = torch.log(torch.tensor([WEIGHTS[name] for name in names], dtype=torch.float64))
    return WEIGHTS | dict(zip(names, _maximise(stacked, owner, start).tolist(), strict=True))


def _maximise(scores: Tensor, owner: Tensor, start: Tensor) -> Float[Tensor, " witness"]:
    """argmax over w > 0 of sum log softmax(scores @ w)[owner], with a weak prior at the start."""
    log_weights = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([log_weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.cross_entropy(scores @ log_weights.exp(), owner, reduction="sum")
        total = fit + (log_weights - start).square().sum() / 2
        total.backward()
        return total

    optimiser.step(loss)
    return log_weights.detach().exp()
