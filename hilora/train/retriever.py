"""LoraRetriever (RAMoLE section IV-A): an embedder trained so that prompts of one task lie together.

    loss(x) = -log( e^(s(x, x+)/tau) / (e^(s(x, x+)/tau) + sum_j e^(s(x, x_j-)/tau)) )        s = cosine

with x+ another sample of x's task and x_j- samples of other tasks, all with the instruction in front. A step takes
one pair from each of `batch` different tasks (all tasks, where there are fewer): the others' x+ are then random
samples of other tasks and serve as negatives, so p = batch - 1 negatives cost no embedding of their own. (The paper
prints the softmax itself as the loss; its negative logarithm is what is minimised.)

Only the few samples that stand for each adapter are used: nobody's training data is asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hilora.base.embed import BATCH, DEFAULT_EMBEDDER, INSTRUCTION, embedder_path
from hilora.base.encoders import load_encoder, longest_text, pooled, pooling_of
from hilora.base.models import default_dtype
from hilora.errors import InputError, ModelError
from hilora.train.loop import OnStep, optimise
from hilora.train.outcome import finish, refuse_existing, work_folder, write_recipe
from hilora.train.recipe import Shared
from hilora.train.tasks import hash_tasks, tasks_of

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class RetrieverRecipe(Shared):
    """How an embedder is trained.

    Attributes:
        temperature: tau.
        embedder: what it starts from.
        instruction: in front of every text.
        autocast: compute in bf16 where that keeps enough; weights stay fp32. Default: where bf16 is fast.
    """

    steps: int = 300
    batch: int = 32
    lr: float = 5e-5
    max_tokens: int = 256
    temperature: float = 0.05
    embedder: str = DEFAULT_EMBEDDER
    instruction: str = INSTRUCTION
    autocast: bool = field(default_factory=lambda: default_dtype() == torch.bfloat16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0; got {self.temperature}.")


def contrastive_loss(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Mean loss of anchors (pair, dim) whose positives lie at the same place; the other positives are negatives."""
    unit = [torch.nn.functional.normalize(each, dim=1) for each in (anchors, positives)]
    # logits_ij = cos(x_i, x+_j) / tau
    logits = unit[0] @ unit[1].T / temperature
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def pairs(samples: Mapping[str, Sequence[str]], recipe: RetrieverRecipe) -> Iterator[Pairs]:
    """Endless batches: two different samples of each of some different tasks."""
    names = sorted(samples)
    rng = np.random.default_rng(recipe.seed)
    while True:
        chosen = rng.permutation(len(names))[: recipe.batch]
        drawn: Pairs = []
        for i in chosen:
            texts = list(dict.fromkeys(samples[names[i]]))
            one, other = rng.permutation(len(texts))[:2]
            drawn.append((texts[one], texts[other]))
        yield drawn


def check_training(samples: Mapping[str, Sequence[str]], out: Path) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Raises:
        InputError: `out` exists, or there are too few tasks or samples.
    """
    refuse_existing(out)
    few = [name for name, texts in samples.items() if len(set(texts)) < 2]
    if len(samples) < 2 or few:
        what = f"{few[0]!r} has fewer than two different samples" if len(samples) > 1 else "there is only one task"
        raise InputError(f"A retriever is trained on pairs of samples of different tasks; {what}.")


def train_retriever(
    samples: Mapping[str, Sequence[str]], out: Path, recipe: RetrieverRecipe, *, on_step: OnStep | None = None
) -> Path:
    """Train an embedder and write `out`, a sentence-transformers folder with `recipe.json` and `training.jsonl`.

    Args:
        samples: task -> its samples' texts, at least two tasks with two samples each.
        out: the folder to write; it appears when training is complete.
        recipe: how.
        on_step: called with (step, loss, texts per second).

    Raises:
        InputError: `out` exists, or there are too few tasks or samples.
        ModelError: the embedder is not an encoder with mean or first-token pooling.
    """
    check_training(samples, out)
    names = tasks_of(samples, recipe)
    source = embedder_path(recipe.embedder)
    pooling, longest = pooling_of(source), min(recipe.max_tokens, longest_text(source) or recipe.max_tokens)
    if pooling is None:
        raise ModelError(f"The embedder at {source} is no encoder with mean or first-token pooling; choose another.")
    torch.manual_seed(recipe.seed)
    model, tokenizer = load_encoder(source, dtype=torch.float32, attn_implementation="eager")
    model.eval()  # no dropout: an interrupted run has to end as an uninterrupted one

    def embed(texts: Sequence[str]) -> Tensor:
        instructed = [f"{recipe.instruction}: {text}" if recipe.instruction else text for text in texts]
        lengths = [len(ids) for ids in tokenizer(instructed, truncation=True, max_length=longest)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: lengths[i])  # texts of like lengths share a batch: no padding
        parts = []
        for start in range(0, len(order), BATCH):
            few = [instructed[i] for i in order[start : start + BATCH]]
            tokens = tokenizer(few, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                hidden: Tensor = model(**tokens).last_hidden_state  # (text, seq, dim)
            parts.append(pooled(hidden, tokens["attention_mask"], pooling, normalises=False))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def loss_of(batch: Pairs) -> Tensor:
        vectors = embed([text for pair in batch for text in pair])
        return contrastive_loss(vectors[0::2], vectors[1::2], recipe.temperature)

    named = {name: p for name, p in model.named_parameters() if not name.startswith("pooler.")}  # not used here
    stream = pairs({name: samples[name] for name in names}, recipe)
    key = hash_tasks({name: [{"inputs": text, "targets": ""} for text in samples[name]] for name in names})
    unread = shutil.ignore_patterns("*.bin", "*.onnx", "*.safetensors", "openvino")
    with work_folder(out) as work:
        optimise(named, stream, loss_of, lambda batch: 2 * len(batch), recipe, work, key=key, on_step=on_step)
        folder = work / "embedder"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted here
        shutil.copytree(source, folder, ignore=unread)
        model.save_pretrained(folder)
        write_recipe(folder, recipe, tasks=names)
        return finish(folder, out)
