"""Training lines -> examples -> batches -> the loss on their completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hilora.base.prompts import check_whole, encode_prompts
from hilora.base.records import pair_of, text_of
from hilora.errors import InputError
from hilora.jsonl import numbered_lines, parse_line
from hilora.train.recipe import Schedule

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position that the loss leaves out


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its completion, the end token included."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


E = TypeVar("E", bound=Example)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows with "inputs", a text or a chat, and "targets", a text, from JSON Lines in the shapes of `base.records`.

    Raises:
        InputError: no such file, no rows, or a row of no known shape (names the line).
    """
    rows = []
    for number, line in numbered_lines(path, "the training lines"):
        where = f"{path}, line {number}"
        fields = parse_line(line, where)
        try:
            inputs, targets = pair_of(fields)
        except InputError as error:
            raise InputError(
                f'{where}: expected {{"inputs": ..., "targets": ...}} or the like, got {line:.60} ({error})'
            ) from error
        for text in (inputs, targets):
            if isinstance(text, str):  # a chat has been looked at
                check_whole(text, where)
        rows.append({"inputs": inputs, "targets": targets})
    if not rows:
        raise InputError(f"{path} holds no training lines.")
    return rows


def encode_examples(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Token ids of each row; the completion ends with the end token."""
    prompts = encode_prompts([row["inputs"] for row in rows], tokenizer)
    targets: Any = tokenizer([row["targets"] for row in rows], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Example(p, list(t) + end) for p, t in zip(prompts, targets, strict=True)]


def write_samples(rows: Sequence[dict[str, Any]], path: Path, count: int, seed: int) -> None:
    """Draw m of the training inputs, the texts that will represent the adapter when it is routed to."""
    import numpy as np

    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    lines = [json.dumps({"inputs": text_of(rows[i]["inputs"])}, ensure_ascii=False) for i in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def batches(examples: Sequence[E], recipe: Schedule) -> Iterator[list[E]]:
    """Endless batches of like length: shuffle, sort within stretches of 16 batches, shuffle those."""
    import numpy as np

    rng = np.random.default_rng(recipe.seed)
    lengths = np.array([len(e) for e in examples])
    stretch = 16 * recipe.batch
    while True:
        order = rng.permutation(len(examples))
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(lengths[part], kind="stable")]
            groups = [part[i : i + recipe.batch] for i in range(0, len(part), recipe.batch)]
            for g in rng.permutation(len(groups)):
                yield [examples[i] for i in groups[g]]


def completion_loss(model: Any, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the completions' tokens, logits taken at those positions only."""
    import torch.nn.functional as F

    device = model.device
    if model.config.is_encoder_decoder:
        ids, mask = _pad([e.prompt for e in batch], pad, device)
        labels, _ = _pad([e.completion for e in batch], IGNORED, device)
        loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss
    ids, mask = _pad([e.prompt + e.completion for e in batch], pad, device)
    # the position before a completion token predicts it
    labels, _ = _pad([[IGNORED] * (len(e.prompt) - 1) + e.completion + [IGNORED] for e in batch], IGNORED, device)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    chosen = labels != IGNORED  # (batch, seq)
    head = base.get_output_embeddings()
    # Gemma 2 changes its logits afterwards; hooks of the head expect the tokens of whole rows
    if getattr(base.config, "final_logit_softcapping", None) or head._forward_hooks:
        logits = base(input_ids=ids, attention_mask=mask).logits[chosen]
    else:
        backbone = getattr(base, base.base_model_prefix)
        hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (batch, seq, dim)
        logits = head(hidden[chosen])  # (token, vocabulary)
    return F.cross_entropy(logits.float(), labels[chosen])


def _pad(rows: Sequence[list[int]], fill: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and their mask, both (batch, seq)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask
