"""All that can be said of how one prompt was served: who was chosen, who was not and by how far, and what it used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hilora.analyse.activation import Activation, record
from hilora.engine.generate import HiLoRA
from hilora.methods.method import Method
from hilora.methods.table import METHODS
from hilora.planner import Planner
from hilora.pool.derived import Merged
from hilora.route.logo import Logo
from hilora.route.posterior import Posterior
from hilora.route.retriever import Retriever
from hilora.route.router import Gaussian
from hilora.route.tied import Tied
from hilora.types import Choice

RUNNERS_UP = 5


@dataclass(frozen=True)
class ScoreKind:
    """What a router's scores are.

    Attributes:
        name: in two or three words.
        meaning: a sentence.
        write: a score as text.
        behind: how far one score is behind another, as text.
    """

    name: str
    meaning: str
    write: Callable[[float], str]
    behind: Callable[[float, float], str]


def _percent(log_probability: float) -> str:
    percent = 100 * math.exp(min(log_probability, 0.0))
    return f"{percent:.2f} %" if percent >= 0.01 else "below 0.01 %"


def _times(last: float, score: float) -> str:
    factor = math.exp(min(last - score, 7.0))
    return f"{factor:.1f} times less likely" if factor < 1000 else "over 1000 times less likely"


KINDS: tuple[tuple[type | tuple[type, ...], ScoreKind], ...] = (
    (
        (Gaussian, Tied),
        ScoreKind(
            "log-likelihood per dimension",
            "how likely the prompt is among the adapter's samples: the logarithm of a Gaussian density, divided by "
            "the number of dimensions of the embedding. Higher is better.",
            lambda score: f"{score:.2f}",
            lambda last, score: f"{last - score:.2f} lower",
        ),
    ),
    (
        Posterior,
        ScoreKind(
            "probability",
            "how probable it is that the prompt belongs to this adapter and to no other of the pool. The "
            "probabilities of the whole pool add up to 100 %.",
            _percent,
            _times,
        ),
    ),
    (
        Retriever,
        ScoreKind(
            "cosine",
            "how near the prompt's embedding is to the mean of the adapter's samples: 1 is the same direction, 0 is "
            "nothing in common.",
            lambda score: f"{score:.3f}",
            lambda last, score: f"{last - score:.3f} lower",
        ),
    ),
    (
        Logo,
        ScoreKind(
            "size of the output",
            "how much the adapter adds to one module's output for the prompt's last token: its length, or one over "
            "the entropy of its softmax. Weights are shares of it.",
            lambda score: f"{score:.4g}",
            lambda last, score: f"{last - score:.3g} lower",
        ),
    ),
)
"""Router -> what it scores by; routers that compare nothing are not here."""


@dataclass(frozen=True)
class Explanation:
    """Why a prompt is served as it is.

    Attributes:
        prompt: what was routed on.
        method: how.
        summary: what the method does, in one line.
        score: what scores are; None where adapters were not compared.
        choices: the adapters chosen, best first.
        runners_up: the best of those that were not.
        num_adapters: in the pool.
        lead: how far the best adapter is above the rest, where the method goes by that, else None.
        seen_above: a lead, or else a score, above this means that the adapter knows such prompts; None where the
            method does not say.
        note: why the base model serves the prompt alone, if it does; else "".
        activation: the answer and what its tokens used; None if nothing was generated.
        answer: the answer's text; None if nothing was generated.
    """

    prompt: str
    method: str
    summary: str
    score: ScoreKind | None
    choices: tuple[Choice, ...]
    runners_up: tuple[Choice, ...]
    num_adapters: int
    lead: float | None
    seen_above: float | None
    note: str
    activation: Activation | None = None
    answer: str | None = None

    @property
    def seen(self) -> bool | None:
        """Whether a chosen adapter knows such prompts; None where the method does not say."""
        said = [choice.seen for choice in self.choices if choice.seen is not None]
        return any(said) if said else None


def score_kind(method: Method) -> ScoreKind | None:
    """What a method's scores are; None where it compares nothing."""
    return next((kind for router, kind in KINDS if isinstance(method.router, router)), None)


def explain(
    planner: Planner,
    text: str,
    *,
    seed: int = 0,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    runners_up: int = RUNNERS_UP,
) -> Explanation:
    """Explain one prompt's route. The base model is not needed.

    Args:
        planner: routes by its method.
        text: the prompt.
        seed, allow, deny: as for `HiLoRA.generate`.
        runners_up: at most so many adapters that were not chosen.
    """
    routed = planner.route([text], allow=allow, deny=deny)
    (choices,) = planner.explain(routed, seed)
    kind = score_kind(planner.method)
    behind: list[Choice] = []
    if kind is not None and not isinstance(planner.source, Merged):
        # whoever would be chosen if those before were not there
        while len(behind) < runners_up:
            barred = [*(deny or ()), *(choice.name for choice in (*choices, *behind))]
            (next_best,) = planner.explain(planner.route([text], allow=allow, deny=barred), seed)
            if not next_best:
                break
            behind += next_best
    return Explanation(
        prompt=text,
        method=planner.method.name,
        summary=(METHODS[planner.method.name].__doc__ or "").strip(),
        score=kind,
        choices=choices,
        runners_up=tuple(sorted(behind, key=lambda choice: -choice.score)[:runners_up]),
        num_adapters=len(planner.pool),
        lead=None if routed.route is None or routed.route.leads is None else float(routed.route.leads[0]),
        seen_above=planner.method.router.seen_above_ if planner.method.router else None,
        note=routed.notes[0],
    )


def explain_answer(
    router: HiLoRA, text: str, *, max_new_tokens: int = 64, seed: int = 0, **lists: Any
) -> Explanation:
    """The same with the answer, and what its tokens used.

    Args:
        router: answers by its method.
        text: the prompt.
        max_new_tokens, seed: as for `HiLoRA.generate`.
        lists: allow and deny.
    """
    found = explain(router.planner, text, seed=seed, **lists)
    if found.choices:
        used = record(router, text, seed=seed, max_new_tokens=max_new_tokens, **lists)
        return replace(found, activation=used, answer=used.answer)
    (answer,) = router.generate([text], seed=seed, max_new_tokens=max_new_tokens, **lists)
    return replace(found, answer=answer.text)
