"""The posterior among the adapters that are near a prompt: of very many, only these are looked at closely.

They are so many of the adapters that the row may use, by meaning alone the likeliest, none missed (`route.exact`).
The other witnesses, who know long lists of n-grams, judge those. So the cost hardly grows with the pool, and still
nobody whom the row may not use changes anything: whether a row has a short list depends on how many it may use.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.route.experts import sum_scores
from hilora.route.features import Features
from hilora.route.grown import GrownExperts
from hilora.route.phrases import Common
from hilora.route.witnesses import Phrases

NEAR = 128
"""Adapters that are looked at closely, unless told otherwise."""
MANY = 2000
"""A row that may use so many has all of them looked at, which takes no longer; unless told otherwise."""
_MEAN = torch.zeros(1, dtype=torch.long)


class Near(NamedTuple):
    """Adapters near some texts, and what is thought of them.

    Attributes:
        ids: their positions, ascending, so that of equal ones the pool's first comes first.
        posterior: log posteriors among them; fp32.
        lead: of the best of them over the mean adapter.
    """

    ids: Int[Tensor, "text near"]
    posterior: Float[Tensor, "text near"]
    lead: Float[Tensor, " text"]


def prepare(model: GrownExperts, many: int) -> None:
    """Make what `judge_near` needs now, not at the first prompt, for a pool of more than so many."""
    if len(model.worded_) > many:
        _ = model.nearest
        for parts in model.witnesses_.values():
            if isinstance(lists := parts.main, Phrases):
                lists.common_ = lists.common_ or Common.of(lists)


def judge_near(model: GrownExperts, texts: Features, allowed: Bool[Tensor, "text adapter"], count: int) -> Near:
    """As `GrownExperts.judge`, among so many adapters near each text; each may use no fewer."""
    weight = model.weights_["meaning"]
    scores, ids, mean = model.nearest.top(texts.embeddings, count, allowed)
    scores, mean = (scores * weight).float(), (mean * weight).float()
    found = []
    for row in range(len(texts)):
        text = texts if len(texts) == 1 else texts.take(torch.tensor([row]))
        found.append(_judge(model, text, ids[row], scores[row], mean[row]))
    posterior, lead = zip(*found, strict=True)
    return Near(ids, torch.stack(posterior), torch.stack(lead))


def _judge(
    model: GrownExperts, text: Features, ids: Int[Tensor, " near"], scores: Float[Tensor, " near"], mean: Tensor
) -> tuple[Float[Tensor, " near"], Tensor]:
    if len(model.witnesses_) > 1 and text.terms is not None:
        has = model.worded_[ids]
        rows = torch.cat([_MEAN, model.among[ids[has]]])
        said = {name: parts.some(text, rows) for name, parts in model.witnesses_.items() if name != "meaning"}
        both = sum_scores(said, model.weights_)
        near, wording = scores[has], both[1:]
        expected = torch.logsumexp(torch.log_softmax(near, dim=0) + wording, dim=0) if len(near) else both[0]
        scores = scores + expected
        scores[has] = near + wording
        mean = mean + model.share * both[0] + (1 - model.share) * expected
    return torch.log_softmax(scores, dim=0), scores.max() - mean
