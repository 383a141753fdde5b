"""Finding LoRAHub's weights (Huang et al. 2023): CMA-ES on the loss of a few examples, no gradients.

    minimise  mean loss of the examples under A = sum_i w_i A_i, B = sum_i w_i B_i  +  l1 * mean |w_i|

over w in [-1.5, 1.5]^n, starting from 0, with 20 adapters drawn at random, 0.05 for l1 and 40 evaluations, as in its
public settings. The mixed form learns one w from examples of all tasks; the original form makes an adapter of a new
task, from examples of that task alone (`make_adapter`). The original optimiser is nevergrad's; its paper names
CMA-ES, which pycma has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hilora.base.modules import placements
from hilora.base.prompts import pad_id
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.engine.attach import attach
from hilora.errors import HiloraError, InputError
from hilora.merge.average import combine
from hilora.pool.export import write_peft
from hilora.pool.trained import TRAINED, Trained
from hilora.pool.view import Entry, PoolView
from hilora.train.data import completion_loss, write_samples
from hilora.train.tasks import Rows, TaskExample, draw, encode_tasks, hash_tasks
from hilora.types import Factors, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class HubRecipe:
    """How the weights are searched.

    Attributes:
        members: adapters that are drawn.
        evaluations: of the loss.
        l1: weight of the mean |w_i|.
        bound: largest |w_i|.
        sigma: first step size.
        per_task: examples of each task.
        batch, max_tokens: of the loss.
        seed: of the draw and of the search.
    """

    members: int = 20
    evaluations: int = 40
    l1: float = 0.05
    bound: float = 1.5
    sigma: float = 0.5
    per_task: int = 20
    batch: int = 32
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 2 or self.evaluations < 1:
            raise InputError("LoRAHub needs at least 2 members and 1 evaluation.")


Loss = Callable[[Sequence[float]], float]


def search(
    loss: Loss, count: int, recipe: HubRecipe, log: Path | None = None, key: str = ""
) -> tuple[list[float], float]:
    """The best weights found, and their loss with the L1 term.

    Args:
        loss: weights -> mean loss of the examples.
        count: number of weights.
        recipe: how.
        log: JSON Lines of what was evaluated; what it holds already is taken from there, so that a run goes on.
        key: of everything else that the loss depends on: data, adapters, base. A log of another is refused.

    Raises:
        HiloraError: pycma is missing.
        InputError: the log is of another search.
    """
    try:
        import cma
    except ImportError as error:
        raise HiloraError("LoRAHub searches with pycma. Run: pip install 'hilora[train]'") from error
    known = _read_log(log, {"key": key, "recipe": asdict(recipe)})
    options = {"bounds": [-recipe.bound, recipe.bound], "seed": recipe.seed + 1, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([0.0] * count, recipe.sigma, options)
    best, lowest, done = [0.0] * count, float("inf"), 0
    while done < recipe.evaluations:
        asked = strategy.ask()
        if done == 0:
            asked[0] = np.zeros(count)  # the base model itself is the first guess
        values = []
        for weights in asked:
            if done < len(known):
                value = float(known[done]["loss"])
            elif done < recipe.evaluations:
                value = loss(weights.tolist()) + recipe.l1 * float(np.abs(weights).mean())
                if log is not None:
                    with log.open("a") as lines:
                        lines.write(json.dumps({"weights": weights.tolist(), "loss": value}) + "\n")
            else:
                break
            done += 1
            values.append(value)
            if value < lowest:
                best, lowest = weights.tolist(), value
        if len(values) == len(asked):
            strategy.tell(asked, values)
    return best, lowest


def _read_log(log: Path | None, header: dict[str, Any]) -> list[dict[str, Any]]:
    """What was evaluated already; a new log gets its first line. A line that was cut off is taken out."""
    if log is None:
        return []
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    first, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if first and json.loads(first) != json.loads(json.dumps(header)):
        raise InputError(f"{log} is of another search. Give the same data and options, or delete it to start again.")
    log.write_text("".join(line + "\n" for line in [json.dumps(header), *lines]), encoding="utf-8")
    return [json.loads(line) for line in lines]


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
    log = pool.path / TRAINED / ".training-lorahub.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    weights = _searched(pool, entries, drawn, recipe, model, tokenizer, log, on_step)
    path = Trained(
        "lorahub",
        {"weights": torch.tensor(weights)},
        {entry.name: entry.hash for entry in entries},
        {},
        pool.version,
        hash_tasks(drawn),
        asdict(recipe) | {"drawn": [entry.name for entry in entries]},
    ).save(pool.path)
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
    if out.exists():
        raise InputError(f"{out} exists. Choose another --out, or delete it to search again.")
    entries, drawn = draw_members(pool, recipe, without), draw({out.name: rows}, recipe.per_task, recipe.seed)
    work = out.with_name(out.name + ".training")
    work.mkdir(parents=True, exist_ok=True)
    weights = _searched(pool, entries, drawn, recipe, model, tokenizer, work / "training.jsonl", on_step)
    merged = combine([pool.factors(entry.hash) for entry in entries], weights)
    write_peft(work, merged, pool.base.name)
    about = asdict(recipe) | {"weights": dict(zip([entry.name for entry in entries], weights, strict=True))}
    (work / "recipe.json").write_text(json.dumps(about, indent=1) + "\n")
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

    key = " ".join([hash_tasks(drawn), *(entry.hash for entry in entries)])
    return search(watched, len(entries), recipe, log, key)[0]


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
            ones = torch.ones(len(group), 1)
            plan = Plan((0,), torch.tensor([rank]), ones, ones.long() * rank, torch.ones(len(group)), whole=True)
            count = sum(len(example.completion) for example in group)
            with torch.inference_mode(), attach(model, sites, plan, Weighted()):
                total += float(completion_loss(model, group, pad)) * count
            tokens += count
        return total / tokens

    return loss
