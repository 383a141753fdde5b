"""Train one LoRA adapter on {"inputs", "targets"} lines: a PEFT folder and its m routing samples.

The loss counts the completion only. Two savings matter on a CPU: logits are computed at target positions
only (the output layer of a small model is a quarter of its weights), and batches hold examples of like
length, so that little padding is computed. An interrupted run resumes at its last checkpoint and gives
the same adapter, since each step's batch depends on the seed and the step alone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError, ModelError
from hilora.prompts import encode_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # label of a position that the loss leaves out


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained; written beside it as `recipe.json`.

    Attributes:
        targets: names of the linear modules to adapt.
        rank, alpha: LoRA rank and scaling numerator.
        steps, batch: optimiser steps, and examples in each.
        lr, warmup: peak learning rate; share of the steps that rise to it, then a linear decay to 0.
        max_tokens: examples longer than this (prompt and completion) are left out.
        seed: order of the examples and initial weights.
        num_samples: m, the routing samples drawn from the training lines.
    """

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: int = 16
    steps: int = 150
    batch: int = 16
    lr: float = 3e-3
    warmup: float = 0.06
    max_tokens: int = 512
    seed: int = 0
    num_samples: int = 20


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its completion, the end token included."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def read_lines(path: Path) -> list[dict[str, str]]:
    """Rows with "inputs" and "targets" from a JSON Lines file.

    Raises:
        InputError: no such file, no rows, or a row without the two fields (names the line).
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({"inputs": row["inputs"], "targets": row["targets"]})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path}, line {number}: expected {{"inputs": ..., "targets": ...}}, got {line:.60}'
            ) from error
    if not rows:
        raise InputError(f"{path} holds no training lines.")
    return rows


def train_lora(
    rows: Sequence[dict[str, str]],
    out: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_name: str,
    recipe: Recipe | None = None,
    checkpoint_every: int = 25,
    on_step: Callable[[int, float, float], None] | None = None,
) -> Path:
    """Train an adapter and write `out` as a PEFT folder with `samples.jsonl` and `training.jsonl`.

    Args:
        rows: training lines, each with "inputs" and "targets".
        out: the folder to write; it appears when training is complete.
        model, tokenizer: the base model; its weights are left as they were.
        base_name: the base model's name, for the adapter's config.
        recipe: how to train.
        checkpoint_every: steps between checkpoints in `<out>.training`.
        on_step: called with (step, loss, real tokens per second).

    Raises:
        InputError: `out` exists, or no line fits into `max_tokens`.
        ModelError: the base has none of the target modules.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    recipe = recipe or Recipe()
    if out.exists():
        raise InputError(f"{out} exists. Choose another --out, or delete it to train again.")
    examples = [e for e in encode_examples(rows, tokenizer) if len(e) <= recipe.max_tokens]
    if not examples:
        raise InputError(f"None of the {len(rows)} lines fits into {recipe.max_tokens} tokens. Raise --max-tokens.")
    work = out.with_name(out.name + ".training")
    work.mkdir(parents=True, exist_ok=True)

    attention, training = model.config._attn_implementation, model.training
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.set_attn_implementation("eager")  # on a CPU the fused kernel's backward is 3 times slower in bf16
    torch.manual_seed(recipe.seed)
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        task_type=task,
    )
    try:
        peft_model: Any = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"The base has no modules named {recipe.targets}: {error}") from error
    try:
        _optimise(peft_model, examples, recipe, work, tokenizer, checkpoint_every, on_step)
        state = {name: tensor.to(model.dtype) for name, tensor in _adapter_state(peft_model).items()}
        peft_model.peft_config["default"].base_model_name_or_path = base_name
        peft_model.save_pretrained(work / "adapter", state_dict=state, save_embedding_layers=False)
    finally:
        peft_model.unload()
        model.set_attn_implementation(attention)
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    adapter = work / "adapter"
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty card template
    (adapter / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    write_samples(rows, adapter / "samples.jsonl", recipe)
    shutil.copy(work / "training.jsonl", adapter / "training.jsonl")
    adapter.rename(out)
    shutil.rmtree(work)
    return out


def encode_examples(rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Token ids of each row; the completion ends with the end token."""
    prompts = encode_prompts([row["inputs"] for row in rows], tokenizer)
    targets: Any = tokenizer([row["targets"] for row in rows], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Example(p, list(t) + end) for p, t in zip(prompts, targets, strict=True)]


def write_samples(rows: Sequence[dict[str, str]], path: Path, recipe: Recipe) -> None:
    """Draw m of the training inputs, the texts that will represent the adapter when it is routed to."""
    import numpy as np

    chosen = np.random.default_rng(recipe.seed).permutation(len(rows))[: recipe.num_samples]
    lines = [json.dumps({"inputs": rows[i]["inputs"]}, ensure_ascii=False) for i in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def batches(examples: Sequence[Example], recipe: Recipe) -> Iterator[list[Example]]:
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
    if getattr(base.config, "final_logit_softcapping", None):  # Gemma 2 changes its logits afterwards
        logits = base(input_ids=ids, attention_mask=mask).logits[chosen]
    else:
        backbone = getattr(base, base.base_model_prefix)
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, seq, dim)
        logits = base.get_output_embeddings()(hidden[chosen])  # (token, vocabulary)
    return F.cross_entropy(logits.float(), labels[chosen])


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear rise to the peak over the warm-up, linear fall to 0 at the end."""
    rise = max(1, round(recipe.warmup * recipe.steps))
    return recipe.lr * min((step + 1) / rise, (recipe.steps - step) / max(1, recipe.steps - rise))


def _pad(rows: Sequence[list[int]], fill: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and their mask, both (batch, seq)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def _adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(peft_model)
    return state


def _optimise(
    model: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    work: Path,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint_every: int,
    on_step: Callable[[int, float, float], None] | None,
) -> None:
    """AdamW with linear warm-up and decay, checkpoints in `work`, one log line per step."""
    import torch

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(named.values(), lr=recipe.lr, weight_decay=0.0)
    done = load_checkpoint(work, recipe, named, optimiser)
    log = work / "training.jsonl"
    kept = log.read_text().splitlines()[:done] if log.exists() else []
    log.write_text("".join(line + "\n" for line in kept))
    stream = batches(examples, recipe)
    model.train()
    for step in range(recipe.steps):
        batch = next(stream)
        if step < done:
            continue
        start = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = completion_loss(model, batch, tokenizer.pad_token_id or 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds = time.perf_counter() - start
        value, speed = float(loss.detach()), sum(map(len, batch)) / seconds
        with log.open("a") as lines:
            row = {"step": step + 1, "loss": round(value, 4), "tokens_per_s": round(speed)}
            lines.write(json.dumps(row) + "\n")
        if (step + 1) % checkpoint_every == 0 and step + 1 < recipe.steps:
            save_checkpoint(work, recipe, step + 1, named, optimiser)
        if on_step:
            on_step(step + 1, value, speed)


def save_checkpoint(
    work: Path, recipe: Recipe, step: int, named: dict[str, torch.nn.Parameter], optimiser: Any
) -> None:
    """Weights and optimiser moments as safetensors: `kill -9` leaves the old or the new checkpoint."""
    from safetensors.torch import save_file

    tensors = {name: p.detach() for name, p in named.items()}
    for name, p in named.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}:{name}"] = optimiser.state[p][moment]
    partial = work / "checkpoint.partial"
    save_file(tensors, partial, metadata={"step": str(step), "recipe": json.dumps(asdict(recipe))})
    partial.rename(work / "checkpoint.safetensors")


def load_checkpoint(work: Path, recipe: Recipe, named: dict[str, torch.nn.Parameter], optimiser: Any) -> int:
    """Steps already done, with weights and moments restored in place; 0 without a checkpoint."""
    import torch
    from safetensors import safe_open

    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["recipe"]) != json.loads(json.dumps(asdict(recipe))):
            raise InputError(f"{work} holds a run with another recipe. Give the same options, or delete the folder.")
        step = int(metadata["step"])
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(file.get_tensor(name))
                optimiser.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"exp_avg:{name}").to(p.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq:{name}").to(p.device),
                }
    return step
