"""The weighted product of witnesses (`experts`) under an epoch: adapters come and go, and nothing is fitted anew.

Who a row may not use, does not exist for it: the posterior is among those that it may, and the best of them leads the
mean adapter of the epoch, not the mean of whoever is in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.epoch import Epoch
from hilora.route.experts import said_of, sum_scores
from hilora.route.features import Features
from hilora.route.kept import tensors_of, witness_of
from hilora.route.meaning import NearMeaning
from hilora.route.parts import Parts
from hilora.route.witnesses import Witness, has_outlines, has_terms


@dataclass(frozen=True)
class GrownExperts:
    """The weighted product of the witnesses, under an epoch.

    Attributes:
        weights_: of the witnesses.
        share: of the adapters that the epoch was learned from, those whose terms are kept.
        worded_: whether terms of an adapter are kept, all that the epoch looks at, and looked at.
        witnesses_: the epoch's mean adapter first, then the pool's; of those but meaning, the worded ones.
    """

    weights_: Mapping[str, float]
    share: float
    worded_: Bool[Tensor, " adapter"]
    witnesses_: Mapping[str, Parts[Witness]]

    @cached_property
    def among(self) -> Int[Tensor, " adapter"]:
        """Row of each worded adapter among the worded, the mean adapter being row 0."""
        return self.worded_.cumsum(0)

    @cached_property
    def nearest(self) -> NearMeaning:
        """The search by meaning, made when it is first needed."""
        return NearMeaning(self.witnesses_["meaning"])

    @classmethod
    def of(cls, epoch: Epoch, weights: Mapping[str, float], terms: bool) -> GrownExperts:
        """An epoch's, without any adapter."""
        names = [name for name in epoch.witnesses if terms or name == "meaning"]
        witnesses = {name: Parts.whole(epoch.witnesses[name]) for name in names}
        return cls(weights, epoch.share, torch.zeros(0, dtype=torch.bool), witnesses)

    def over(self, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> GrownExperts:
        """Those of a changed pool, see `Parts.over`."""
        new = origin < 0
        speaks = has_outlines if "outline" in self.witnesses_ else has_terms
        has = torch.tensor(list(map(speaks, newcomers)), dtype=torch.bool)
        worded = torch.zeros(len(origin), dtype=torch.bool)
        if len(self.witnesses_) > 1:
            worded[new] = has
            worded[~new] = self.worded_[origin[~new]]
        among = torch.where(new, -1, self.among[origin.clamp_min(0)] if len(self.worded_) else origin)
        some, witnesses = list(filter(speaks, newcomers)), {}
        with one_thread():  # most of it is searching; a pool grows beside a model that is at work
            for name, parts in self.witnesses_.items():
                if name == "meaning":
                    witnesses[name] = parts.over(newcomers, _after_mean(torch.where(new, -1, origin + 1)))
                else:
                    witnesses[name] = parts.over(some, _after_mean(among[worded]))
        return GrownExperts(self.weights_, self.share, worded, witnesses)

    def judge(
        self, texts: Features, allowed: Bool[Tensor, "text adapter"]
    ) -> tuple[Float[Tensor, "text adapter"], Float[Tensor, " text"]]:
        """Log posteriors among the allowed adapters, and the best one's lead over the mean adapter; fp32."""
        said = said_of(self.witnesses_, texts)
        found = said.pop("meaning") * self.weights_["meaning"]
        mean, scores = found[:, 0], found[:, 1:]
        if said:
            both = sum_scores(said, self.weights_)
            mean_wording, wording = both[:, 0], both[:, 1:]
            usable = allowed[:, self.worded_]
            near = scores[:, self.worded_].masked_fill(~usable, -torch.inf)
            # those without terms are judged by meaning: its share of the posterior stays as it is
            expected = torch.logsumexp(torch.log_softmax(near, dim=1) + wording, dim=1)
            expected = torch.where(usable.any(1), expected, mean_wording)
            scores = scores + expected[:, None]
            scores[:, self.worded_] = found[:, 1:][:, self.worded_] + wording
            mean = mean + self.share * mean_wording + (1 - self.share) * expected
        scores = scores.masked_fill(~allowed, -torch.inf)
        lead = torch.where(allowed.any(1), scores.max(1).values - mean, 0.0)
        return torch.log_softmax(scores, dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf), lead

    def tensors(self) -> dict[str, Tensor]:
        """What is the adapters' own, as a pool keeps it."""
        found: dict[str, Tensor] = {"worded": self.worded_}
        for name, parts in self.witnesses_.items():
            whole = parts.together()
            found |= {f"{name}|place": whole.place} | tensors_of(name, whole.main, shared=False)
        return found

    def restored(self, kept: Mapping[str, Tensor]) -> GrownExperts:
        """Inverse of `tensors`, for the experts of the same epoch without any adapter.

        Raises:
            KeyError, ValueError: something is missing, or does not fit together.
        """
        worded = kept["worded"].clone() & (len(self.witnesses_) > 1)
        witnesses = {}
        for name, parts in self.witnesses_.items():
            main = witness_of(name, kept, parts.main)
            witnesses[name] = Parts(main, None, kept[f"{name}|place"].clone())
            expected = 1 + (len(worded) if name == "meaning" else int(worded.sum()))
            if len(witnesses[name]) != expected:
                raise ValueError(f"{name} knows {len(witnesses[name])} adapters, expected {expected}")
        return GrownExperts(self.weights_, self.share, worded, witnesses)


def _after_mean(origin: Int[Tensor, " adapter"]) -> Int[Tensor, " row"]:
    """Rows of a witness: the mean adapter, which stays, then the others."""
    return torch.cat([torch.zeros(1, dtype=torch.long), origin])
