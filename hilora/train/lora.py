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
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError, ModelError
from hilora.train.checkpoint import load_checkpoint, save_checkpoint
from hilora.train.data import Example, batches, completion_loss, encode_examples, write_samples
from hilora.train.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_lora(
    rows: Sequence[dict[str, str]],
    out: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_name: str,
    recipe: Recipe | None = None,
    checkpoint_every: int = 25,
    compile: bool = False,
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
        compile: compile the model's layers (a minute, then about 1.4 times as fast; needs a C++ compiler).
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
        with _compiled(model) if compile else nullcontext():
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


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear rise to the peak over the warm-up, linear fall to 0 at the end."""
    rise = max(1, round(recipe.warmup * recipe.steps))
    return recipe.lr * min((step + 1) / rise, (recipe.steps - step) / max(1, recipe.steps - rise))


@contextmanager
def _compiled(model: PreTrainedModel) -> Iterator[None]:
    """The model's layers compiled, one graph for all of them and for every sequence length; then as before."""
    import torch

    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=64):  # a graph per rank; those of earlier adapters serve on
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


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
