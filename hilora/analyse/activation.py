"""Which ROCs each token of a prompt and its answer used, site by site.

The answer is generated as always. Then prompt and answer go through the model once more, in one piece, under the
same plan and with a composer that hands on what the method's own one does and looks at it: the token used ROC j where
(gate * z)_j is not 0. One forward pass gives the same gates as prefill and decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.analyse.rocs import by_layer
from hilora.base.modules import placements
from hilora.base.prompts import Prompt, encode_prompts
from hilora.compose.delta import Gate, Gated, Tokens
from hilora.compose.stack import stack_sites
from hilora.engine.attach import attach
from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.planner import Planner, Routed
from hilora.pool.view import Source
from hilora.types import Factors, Plan, Rocs, Site


@dataclass(frozen=True)
class Activation:
    """What each token used.

    Attributes:
        tokens: their texts, the prompt's and then the answer's.
        num_prompt: how many are the prompt's.
        names: the plan's adapters, in the order of its columns.
        used: site -> (token, roc) whether the token used the ROC; sites layer by layer, ROCs as in `owners`.
        added: site -> (token, adapter) sizes |gate z| |b|, summed over the adapter's ROCs.
        owners: (roc,) the adapter of each ROC, of as many as it has anywhere; a site may lack some.
        plan: what the row might use.
        answer: the answer's text.
    """

    tokens: list[str]
    num_prompt: int
    names: tuple[str, ...]
    used: Mapping[str, Bool[Tensor, "token _"]]
    added: Mapping[str, Float[Tensor, "token _"]]
    owners: Int[Tensor, " _"]
    plan: Plan
    answer: str

    def used_at(self, sites: Sequence[str]) -> Float[Tensor, "token _"]:
        """Share of the sites at which each token used each ROC: (token, roc)."""
        return torch.stack([self.used[site].float() for site in sites]).mean(0)

    def counts(self, sites: Sequence[str]) -> Float[Tensor, "token _"]:
        """How many ROCs of each adapter each token used at a site, mean over sites: (token, adapter)."""
        used = self.used_at(sites)
        return torch.zeros(len(used), len(self.names)).index_add_(1, self.owners, used)

    def shares(self) -> Float[Tensor, "token _"]:
        """Each adapter's share of what all added to a token; 0 where nothing was: (token, adapter)."""
        added = self.strength()
        return added / added.sum(1, keepdim=True).clamp_min(1e-30)

    def strength(self) -> Float[Tensor, "token _"]:
        """What each adapter added to each token, mean over sites: (token, adapter)."""
        return torch.stack(list(self.added.values())).mean(0)

    def numbers(self, sites: Sequence[str]) -> dict[str, Any]:
        """All of it as plain numbers and texts, over some sites."""
        return {
            "answer": self.answer,
            "tokens": self.tokens,
            "num_prompt": self.num_prompt,
            "adapters": list(self.names),
            "rocs_planned": dict(zip(self.names, self.plan.rocs[0].tolist(), strict=True)),
            "rocs_used": _rounded(self.counts(sites)),  # (token, adapter)
            "share_added": _rounded(self.shares()),  # (token, adapter)
            "share_of_tokens": _rounded(self.used_at(sites).mean(0)),  # (roc,)
            "roc_owner": self.owners.tolist(),
        }


@dataclass
class Recorder:
    """A composer that does what another one does, and keeps what came of it.

    Args:
        inner: the composer.
    """

    inner: Gate
    joinable: ClassVar[bool] = False  # each site is to be seen by itself
    seen_: dict[str, Tensor] = field(default_factory=dict, init=False)  # site -> gate * z (roc, token)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind the inner composer."""
        assert isinstance(rocs, Site)
        gated, name = self.inner(rocs, plan), rocs.name

        def watched(z: Tensor, tokens: Tokens) -> Tensor:
            out = gated(z, tokens)
            self.seen_[name] = out.detach().float().cpu()
            return out

        return watched


class _Collector:
    """A transformers streamer that keeps token ids: the prompt's, then the answer's."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: Tensor) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        pass


def look(model: Any, adapters: Sequence[Factors], plan: Plan, recorder: Gate, ids: list[int]) -> dict[str, Site]:
    """Send one row's tokens through the model once, past a composer that looks on; returns the sites."""
    sites = stack_sites(adapters, placements(model))
    with attach(model, sites, plan, recorder), torch.inference_mode():
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return sites


def record(router: HiLoRA, prompt: Prompt, *, seed: int = 0, max_new_tokens: int = 32, **options: Any) -> Activation:
    """Answer a prompt, and say which ROCs each token used.

    Args:
        router: as for `generate`; its method decides.
        prompt: one prompt.
        seed, max_new_tokens: as for `generate`.
        options: allow, deny, labels.

    Raises:
        InputError: an encoder-decoder model, or a prompt that the base model answers alone.
    """
    planner = router.planner
    routed = planner.route([prompt], **options)
    plan = shown_plan(router.model, planner, routed, 0, seed)
    collector = _Collector()
    (answer,) = router.generate(
        [prompt], seed=seed, max_new_tokens=max_new_tokens, batch_size=1, streamer=collector, **options
    )
    (given,) = encode_prompts([prompt], router.tokenizer)
    said = collector.ids[len(given) : len(given) + answer.completion_tokens]
    used = activation_of(router.model, router.tokenizer, planner.method.gate, routed.source, plan, given, said)
    return replace(used, answer=answer.text)


def shown_plan(model: Any, planner: Planner, routed: Routed, row: int, seed: int) -> Plan:
    """The plan of a row whose tokens use something that can be shown.

    Raises:
        InputError: an encoder-decoder model, or a prompt that the base model answers alone.
    """
    if model.config.is_encoder_decoder:
        raise InputError("Activations are recorded for decoder-only models; this base model has an encoder, too.")
    why = f"method {planner.method.name!r} uses no adapter"
    if routed.route is not None and planner.method.gate is not None:
        plan = planner.plan(routed, [row], seed)
        if plan.ids and row not in routed.silent:
            return plan
        why = "the base model answers this prompt"
    raise InputError(f"There is no ROC to look at: {routed.notes[row] or why}. Choose another method or pool.")


def activation_of(
    model: Any,
    tokenizer: Any,
    gate: Gate | None,
    source: Source,
    plan: Plan,
    given: Sequence[int],
    said: Sequence[int],
) -> Activation:
    """Which ROCs the tokens of a prompt and of its answer use; the model is the caller's meanwhile.

    Args:
        model, tokenizer: the base model's.
        gate: the method's composer, which has one where there is a plan (`shown_plan`).
        source: the adapters that the plan counts along.
        plan: of the one row.
        given, said: token ids of the prompt, and of the answer.
    """
    assert gate is not None
    ids, entries = [*given, *said], [source.entries[i] for i in plan.ids]
    recorder = Recorder(gate)
    sites = look(model, [source.factors(entry.hash) for entry in entries], plan, recorder, ids)
    owners = torch.arange(len(entries)).repeat_interleave(torch.tensor([entry.rank for entry in entries]))
    return Activation(
        tokens=[tokenizer.decode([token]) for token in ids],
        num_prompt=len(given),
        names=tuple(entry.name for entry in entries),
        used={name: _laid_out(recorder.seen_[name] != 0, sites[name].owner, owners) for name in by_layer(sites)},
        added={name: _sizes(recorder.seen_[name], sites[name], len(entries)) for name in by_layer(sites)},
        owners=owners,
        plan=plan,
        answer=tokenizer.decode(list(said)),
    )


def _rounded(values: Tensor) -> Any:
    return (values.double() * 1e4).round().div(1e4).tolist()


def _laid_out(used: Bool[Tensor, "here token"], owner: Tensor, owners: Tensor) -> Bool[Tensor, "token roc"]:
    """ROCs of a site in the order of `owners`, those that the site lacks unused."""
    out = torch.zeros(used.shape[1], len(owners), dtype=torch.bool)
    for adapter in owner.unique().tolist():
        mine = used[(owner == adapter).cpu()]
        start = int((owners == adapter).nonzero()[0])
        out[:, start : start + len(mine)] = mine.T
    return out


def _sizes(gated: Float[Tensor, "here token"], rocs: Rocs, adapters: int) -> Float[Tensor, "token adapter"]:
    sizes = gated.abs() * rocs.size.float().cpu()[:, None]
    return torch.zeros(adapters, gated.shape[1]).index_add_(0, rocs.owner.cpu(), sizes).T
