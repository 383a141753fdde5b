"""Finding LoRAHub's weights (Huang et al. 2023): CMA-ES on the loss of a few examples, no gradients.

    minimise  mean loss of the examples under A = sum_i w_i A_i, B = sum_i w_i B_i  +  l1 * mean |w_i|

over w in [-1.5, 1.5]^n, starting from 0, with 20 adapters drawn at random, 0.05 for l1 and 40 evaluations, as in its
public settings. The mixed form learns one w from examples of all tasks; the original form makes an adapter of a new
task, from examples of that task alone (`make_adapter`). The original optimiser is nevergrad's; its paper names
CMA-ES, which pycma has (`train.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hilora.base.modules import placements
from hilora.base.prompts import pad_id
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.engine.attach import attach
from hilora.errors import InputError
from hilora.merge.average import combine
from hilora.pool.export import write_peft
from hilora.pool.view import Entry, PoolView
from hilora.train.data import completion_loss, write_samples
from hilora.train.frozen import whole_plan
from hilora.train.loop import LOG
from hilora.train.outcome import held_part, part_work, refuse_existing, run_key, save_part, work_folder, write_recipe
from hilora.train.recipe import HubRecipe
from hilora.train.search import Loss, search
from hilora.train.tasks import Rows, TaskExample, draw, encode_tasks
from hilora.types import Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_lorahub(
    pool: PoolView,
    tasks: Mapping[str, Rows],
    recipe: HubRecipe,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Search one set of weights for all tasks (the mixed form); writes POOL/trained/lorahub.safetensors.

    Args:
        pool: the adapters.
        tasks: adapter name -> its training lines.
        recipe: how.
        model, tokenizer: the base.
        on_step: called with (evaluation, loss).
    """
    entries, drawn = draw_members(pool, recipe), draw(tasks, recipe.per_task, recipe.seed)
    log = part_work(pool, "lorahub.jsonl")
    names = [entry.name for entry in entries]
    with held_part(pool, "lorahub"):
        weights = _searched(pool, entries, drawn, recipe, model, tokenizer, log, on_step)
        path = save_part(pool, "lorahub", {"weights": torch.tensor(weights)}, entries, drawn, recipe, drawn=names)
        log.replace(path.with_suffix(".jsonl"))
    return path


def make_adapter(
    pool: PoolView,
    rows: Rows,
    out: Path,
    recipe: HubRecipe,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    without: Collection[str] = (),
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """A new task's adapter from those of a pool, without gradients: the original form of LoRAHub.

    Args:
        pool: the adapters.
        rows: examples of the task; `recipe.per_task` of them are drawn.
        out: the PEFT folder to write, with the examples as its routing samples.
        recipe: how.
        model, tokenizer: the base.
        without: adapters that are not drawn.
        on_step: called with (evaluation, loss).

    Raises:
        InputError: the folder exists; too few adapters are left.
    """
    refuse_existing(out, "search")
    entries, drawn = draw_members(pool, recipe, without), draw({out.name: rows}, recipe.per_task, recipe.seed)
    with work_folder(out, "search") as work:
        weights = _searched(pool, entries, drawn, recipe, model, tokenizer, work / LOG, on_step)
        merged = combine([pool.factors(entry.hash) for entry in entries], weights)
        write_peft(work, merged, pool.base.name)
        write_recipe(work, recipe, weights=dict(zip([entry.name for entry in entries], weights, strict=True)))
        write_samples(drawn[out.name], work / "samples.jsonl", recipe.per_task, recipe.seed)
        return work.rename(out)


def draw_members(pool: PoolView, recipe: HubRecipe, without: Collection[str] = ()) -> list[Entry]:
    """The adapters whose weights are searched, drawn by seed, in the order of their names.

    Raises:
        InputError: fewer than two are left.
    """
    left = sorted(entry.name for entry in pool.entries if entry.enabled and entry.name not in without)
    if len(left) < 2:
        raise InputError(f"LoRAHub needs at least 2 adapters to put together; {len(left)} are left.")
    order = np.random.default_rng(recipe.seed).permutation(left)[: recipe.members]
    return [pool.entries[pool.index(name)] for name in sorted(order.tolist())]


def _searched(
    pool: PoolView,
    entries: Sequence[Entry],
    drawn: Mapping[str, Rows],
    recipe: HubRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log: Path,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    """The weights of adapters that serve these examples best."""
    loss = hub_loss([pool.factors(entry.hash) for entry in entries], drawn, recipe, model, tokenizer)
    count = 0

    def watched(weights: Sequence[float]) -> float:
        nonlocal count
        value = loss(weights)
        count += 1
        if on_step:
            on_step(count, value)
        return value

    return search(watched, len(entries), recipe, log, run_key(drawn, entries))[0]


def hub_loss(
    adapters: Sequence[Factors],
    tasks: Mapping[str, Rows],
    recipe: HubRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Loss:
    """Weights -> mean loss per token of all examples under the weighted sum of the adapters."""
    examples = sorted(encode_tasks(tasks, tokenizer, recipe.max_tokens), key=len)
    groups: list[list[TaskExample]] = [
        examples[start : start + recipe.batch] for start in range(0, len(examples), recipe.batch)
    ]
    where, pad = placements(model), pad_id(tokenizer)

    def loss(weights: Sequence[float]) -> float:
        merged = combine(adapters, weights)
        rank = max(len(down) for down, _ in merged.values())
        sites, total, tokens = stack_sites([merged], where), 0.0, 0
        for group in groups:
            plan = whole_plan([0], [rank], torch.ones(len(group), 1, dtype=torch.bool))
            count = sum(len(example.completion) for example in group)
            with torch.inference_mode(), attach(model, sites, plan, Weighted()):
                total += float(completion_loss(model, group, pad)) * count
            tokens += count
        return total / tokens

    return loss
