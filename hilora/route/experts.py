"""Which adapter a prompt belongs to: the likelihoods of `witnesses`, put on one scale by the adapters' samples.

None of them is calibrated: dimensions correlate and n-grams overlap, so each is far too sure of itself. The
score is their weighted product,

    log p(x | i) = sum_v w_v log p_v(x | i),

with the weights w that make samples' own adapters likeliest, on samples that the likelihoods have not seen: maximum
likelihood with a parameter each, a convex problem. The softmax of the score is then a calibrated posterior.
A part of `hilora-plus`; not in the papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.conformal import own_surprises
from hilora.route.crossfit import MOST_ADAPTERS, folds
from hilora.route.features import Features
from hilora.route.novelty import leads, seen_above
from hilora.route.witnesses import Meaning, Outline, Phrases, Spelling, Witness, has_outlines, has_terms

WEIGHTS = {"meaning": 0.06, "spelling": 0.015, "phrases": 0.012, "outline": 0.03}
"""Where nothing can be held out; near what is fitted for 20 samples per adapter."""
MOST_SURPRISES = 1000
"""A pool keeps at most so many, evenly taken."""


@dataclass
class Experts:
    """The weighted product of the witnesses.

    An adapter whose samples' terms are not kept is judged by its meaning alone: the share of the posterior that the
    embeddings give it stays as it is. Outlines are looked at where all adapters with terms have them.

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
            self.weights_ = WEIGHTS | dict(self.weights)
        self.worded_ = torch.tensor([self.terms and has_terms(own) for own in samples])
        if int(self.worded_.sum()) < 2:
            self.worded_[:] = False  # nothing to compare with
        with one_thread(sum(map(len, samples))):
            self.witnesses_ = {"meaning": Meaning().fit(samples)}
            if self.worded_.any():
                worded = [own for own, has in zip(samples, self.worded_.tolist(), strict=True) if has]
                self.witnesses_ |= {"spelling": Spelling().fit(worded), "phrases": Phrases().fit(worded)}
                if all(map(has_outlines, worded)):
                    self.witnesses_["outline"] = Outline().fit(worded)
        return self

    def score(self, texts: Features) -> Float[Tensor, "text adapter"]:
        """Log posterior of every adapter, up to a term that is the same for all; fp32."""
        found = said_of(self.witnesses_, texts)
        scores = found.pop("meaning") * self.weights_["meaning"]
        if not found:
            return scores
        wording = sum_scores(found, self.weights_)  # (text, worded adapter)
        expected = torch.logsumexp(torch.log_softmax(scores[:, self.worded_], dim=1) + wording, dim=1)
        out = scores + expected[:, None]
        out[:, self.worded_] = scores[:, self.worded_] + wording
        return out

    def judge(
        self, texts: Features, allowed: Bool[Tensor, "text adapter"]
    ) -> tuple[Float[Tensor, "text adapter"], Float[Tensor, " text"]]:
        """Log posteriors over the whole pool, and the lead of each text's best allowed adapter; fp32."""
        scores = self.score(texts)
        return torch.log_softmax(scores, dim=1), leads(scores, allowed)


def said_of(witnesses: Mapping[str, Any], texts: Features) -> dict[str, Float[Tensor, "text _"]]:
    """What each witness says of texts, those without terms judged by meaning alone; on the CPU.

    They are brought there together: a card goes on with one while the CPU sees to the next.
    """
    asked = witnesses if texts.terms is not None else {"meaning": witnesses["meaning"]}
    found = {name: witness.score(texts) for name, witness in asked.items()}
    return {name: scores.cpu() for name, scores in found.items()}


def witness_scores(
    samples: Sequence[Features], terms: bool = True
) -> tuple[Int[Tensor, " held"], dict[str, Float[Tensor, "held adapter"]]]:
    """What each witness says of samples that it has not seen, and whose they are."""
    terms = terms and all(map(has_terms, samples))
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
    some = samples[:: -(-len(samples) // MOST_ADAPTERS)]
    worded = [terms and has_terms(own) for own in some]
    mixed = 2 <= sum(worded) < len(some)  # wording is weighed among those that have it
    with one_thread(sum(map(len, some))):
        looked = [own for own, has in zip(some, worded, strict=True) if has or not mixed]
        owner, scores = witness_scores(looked, terms)
        if not scores:
            return Calibration(dict(WEIGHTS))
        weights = weigh(owner, scores)
    if mixed:
        owner, posterior = _held_out(some, weights, worded)
    else:
        posterior = sum_scores(scores, weights)
    surprise = own_surprises(posterior, owner)[:: -(-len(owner) // MOST_SURPRISES)]
    known = seen_above(leads(posterior).tolist())
    return Calibration(weights, tuple(round(s, 4) for s in surprise.tolist()), known)


def _held_out(
    samples: Sequence[Features], weights: Mapping[str, float], worded: Sequence[bool]
) -> tuple[Int[Tensor, " held"], Float[Tensor, "held adapter"]]:
    """Whose the held-out samples of adapters with terms are, and their scores beside all adapters."""
    found = [(owner, Experts(weights).fit(kept).score(held)) for kept, held, owner in folds(samples, worded)]
    owners, scores = zip(*found, strict=True)
    return torch.cat(owners), torch.cat(scores)


def sum_scores(
    scores: Mapping[str, Float[Tensor, "*text adapter"]], weights: Mapping[str, float]
) -> Float[Tensor, "*text adapter"]:
    """The weighted sum of the witnesses' log-likelihoods."""
    return torch.stack([score * weights[name] for name, score in scores.items()]).sum(0)


def fit_weights(samples: Sequence[Features], terms: bool = True) -> dict[str, float]:
    """The weights that make held-out samples' own adapters likeliest; `WEIGHTS` where nothing can be held out."""
    return dict(calibrate(samples, terms).weights)


def weigh(owner: Int[Tensor, " held"], scores: Mapping[str, Float[Tensor, "held adapter"]]) -> dict[str, float]:
    """The witnesses' weights from what they say of held-out samples; one not in `WEIGHTS` starts as meaning does."""
    names = list(scores)
    stacked = torch.stack([scores[name].double() for name in names], dim=2)  # (held, adapter, witness)
    stacked = stacked - stacked.max(1, keepdim=True).values
    start = torch.log(torch.tensor([WEIGHTS.get(name, WEIGHTS["meaning"]) for name in names], dtype=torch.float64))
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
