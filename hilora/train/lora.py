"""Train one LoRA adapter on {"inputs", "targets"} lines: a PEFT folder and its m routing samples.

The loss counts the completion only. Two savings matter on a CPU: logits are computed at target positions
only (the output layer of a small model is a quarter of its weights), and batches hold examples of like
length, so that little padding is computed. An interrupted run resumes at its last checkpoint and gives
the same adapter, since each step's batch depends on the seed and the step alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.base.modules import linear_shapes
from hilora.errors import InputError, ModelError
from hilora.train.data import batches, completion_loss, encode_examples, write_samples
from hilora.train.loop import OnStep, as_it_was, optimise
from hilora.train.outcome import finish, refuse_existing, work_folder, write_recipe
from hilora.train.recipe import Recipe, check_rank
from hilora.train.tasks import hash_tasks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_lora(
    rows: Sequence[dict[str, Any]],
    out: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_name: str,
    recipe: Recipe | None = None,
    checkpoint_every: int = 25,
    compile: bool = False,
    on_step: OnStep | None = None,
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
        InputError: `out` exists, no line fits into `max_tokens`, or the rank is above what a target module can have.
        ModelError: the base lacks a target module.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    recipe = recipe or Recipe()
    refuse_existing(out)
    _check_targets(linear_shapes(model), recipe)
    examples = [e for e in encode_examples(rows, tokenizer) if len(e) <= recipe.max_tokens]
    if not examples:
        raise InputError(f"None of the {len(rows)} lines fits into {recipe.max_tokens} tokens. Raise --max-tokens.")
    with work_folder(out) as work:
        torch.manual_seed(recipe.seed)
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=list(recipe.targets),
            task_type=task,
        )
        with as_it_was(model):
            try:
                peft_model: Any = get_peft_model(model, config)
            except ValueError as error:
                raise ModelError(f"The base has no modules named {recipe.targets}: {error}") from error
            try:
                peft_model.train()
                with _compiled(model) if compile else nullcontext():
                    optimise(
                        {name: p for name, p in peft_model.named_parameters() if p.requires_grad},
                        batches(examples, recipe),
                        lambda batch: completion_loss(peft_model, batch, tokenizer.pad_token_id or 0),
                        lambda batch: sum(map(len, batch)),
                        recipe,
                        work,
                        key=hash_tasks({base_name: rows}),
                        checkpoint_every=checkpoint_every,
                        on_step=on_step,
                    )
                state = {name: tensor.to(model.dtype) for name, tensor in _adapter_state(peft_model).items()}
                peft_model.peft_config["default"].base_model_name_or_path = base_name
                peft_model.save_pretrained(work / "adapter", state_dict=state, save_embedding_layers=False)
            finally:
                peft_model.unload()
        adapter = work / "adapter"
        (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty card template
        write_recipe(adapter, recipe)
        write_samples(rows, adapter / "samples.jsonl", recipe.num_samples, recipe.seed)
        return finish(adapter, out)


def _check_targets(shapes: Mapping[str, tuple[int, int]], recipe: Recipe) -> None:
    """Refuse what PEFT would leave out in silence, and a rank that only takes memory."""
    ranks: dict[str, int] = {}  # module -> the largest that it can have
    for target in recipe.targets:
        own = {name: min(shape) for name, shape in shapes.items() if f".{name}".endswith(f".{target}")}
        if not own:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in shapes}))
            raise ModelError(f"The base has no modules named {target!r}. Give --target with some of: {there}.")
        ranks |= own
    check_rank(recipe.rank, ranks)


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
