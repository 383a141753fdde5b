"""Log-probabilities of given continuations under a route: what multiple choice and perplexity ask of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hilora.base.padding import pad_batch
from hilora.base.prompts import context_length, encode_prompts, pad_id
from hilora.engine.batching import Batching
from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.planner import Routed
from hilora.train.data import IGNORED

UNROUTED = -1


class Scored(NamedTuple):
    """Targets to score under a row of a route, one at least.

    Attributes:
        row: of the route; `UNROUTED` where nothing was routed on.
        ids: what the model reads: a decoder the prompt and all targets but the last, an encoder the prompt.
        targets: the tokens to score.
    """

    row: int
    ids: tuple[int, ...]
    targets: tuple[int, ...]


def unrouted(router: HiLoRA) -> Routed:
    """A route for what the base model is to score alone, at any row."""
    return Routed([], None, router.planner.source, [])


def encode_pairs(router: HiLoRA, pairs: Sequence[tuple[str, str]], contexts: Sequence[str]) -> list[Scored]:
    """Tokens of each (context, continuation).

    After a chat template, and in an encoder-decoder, an answer begins anew: it is encoded by itself, as in
    training, without one leading space. Elsewhere the text goes on where the context ends, and both are
    encoded together. A pair without context begins after the start token.

    Args:
        router: whose model will score them.
        pairs: contexts and continuations.
        contexts: what is routed on; rows count along it, and a context that is not in it has no row.

    Raises:
        InputError: a continuation without tokens.
    """
    tokenizer, encoder = router.tokenizer, router.model.config.is_encoder_decoder
    anew = bool(tokenizer.chat_template) or encoder
    encoded = encode_prompts([c if anew else c.rstrip() for c in contexts], tokenizer)
    known = {context: (row, ids) for row, (context, ids) in enumerate(zip(contexts, encoded, strict=True))}
    items = []
    for context, text in pairs:
        row, ids = known.get(context, (UNROUTED, [start_id(router)]))
        if anew or row == UNROUTED:
            alone = text.removeprefix(" ") if anew else text
            targets = tokenizer(alone, add_special_tokens=False)["input_ids"]
        else:
            targets = encode_prompts([context + text], tokenizer)[0][len(ids) :]
        if not targets:
            raise InputError(f"The continuation {text!r} of {context[-60:]!r} has no token to score.")
        items.append(Scored(row, (*ids, *(() if encoder else targets[:-1])), tuple(targets)))
    return items


def encode_text(router: HiLoRA, text: str) -> list[Scored]:
    """A text's tokens without template, in windows of the model's context that score each token once.

    Every window has all the context before its targets that there is room for, and one token at least.
    """
    tokens = router.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = context_length(router.model.config) or max(1, len(tokens))
    read = [start_id(router), *tokens]  # read[i] predicts tokens[i]
    ends = [min(start + room, len(tokens)) for start in range(0, len(tokens), room)]
    return [
        Scored(UNROUTED, tuple(read[max(0, end - room) : end]), tuple(tokens[number * room : end]))
        for number, end in enumerate(ends)
    ]


def start_id(router: HiLoRA) -> int:
    """The token that stands before what nothing precedes."""
    found = (router.tokenizer.bos_token_id, router.tokenizer.eos_token_id)
    return int(next((token for token in found if token is not None), 0))


def score(
    router: HiLoRA, routed: Routed, items: Sequence[Scored], *, batch_size: int, seed: int = 0
) -> Iterator[dict[int, tuple[float, bool]]]:
    """Batch by batch: place of an item -> its targets' log-probability, and whether they are the greedy choice.

    Items that need the same forward pass (one-token answers to one context) share it.

    Args:
        router: its model scores.
        routed: from its planner, or `unrouted`.
        items: what to score; none asks for more than the model's context.
        batch_size: rows of a forward pass.
        seed: of the ROC allocation.
    """
    passes: dict[Scored, list[int]] = {}
    for place, item in enumerate(items):
        passes.setdefault(item._replace(targets=item.targets[:-1]), []).append(place)
    order = sorted(passes, key=lambda item: -len(item.ids))  # like lengths share a batch
    if router.batching is Batching.ALONE:  # padding would change the scores
        batch_size = 1
    for start in range(0, len(order), batch_size):
        members = [passes[key] for key in order[start : start + batch_size]]
        batch = [items[places[0]] for places in members]
        found = {}
        with router.attached(routed, [item.row for item in batch], seed), torch.inference_mode():
            for places, logits in zip(members, _logits(router, batch), strict=True):
                log_probs = torch.log_softmax(logits.float(), dim=-1)  # fp32 (target, vocabulary)
                for place in places:
                    targets = torch.tensor(items[place].targets, device=logits.device)
                    total = log_probs.gather(1, targets[:, None]).sum()
                    found[place] = float(total), bool((log_probs.argmax(-1) == targets).all())
        yield found


def _logits(router: HiLoRA, batch: Sequence[Scored]) -> Iterator[Tensor]:
    """Logits (target, vocabulary) that predict each item's targets."""
    model, encoder = router.model, router.model.config.is_encoder_decoder
    ids, mask = pad_batch([list(item.ids) for item in batch], pad_id(router.tokenizer), left=not encoder)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if encoder:
        inputs["labels"] = pad_batch([list(item.targets) for item in batch], IGNORED, left=False)[0]
        logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
        yield from (row[: len(item.targets)] for row, item in zip(logits, batch, strict=True))
        return
    takes = inspect.signature(model.forward).parameters  # not every model counts positions, or can leave logits out
    if "position_ids" in takes:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    keep = {"logits_to_keep": max(len(item.targets) for item in batch)} if "logits_to_keep" in takes else {}
    logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, **keep).logits
    yield from (row[-len(item.targets) :] for row, item in zip(logits, batch, strict=True))
