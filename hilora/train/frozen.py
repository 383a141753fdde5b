"""Training through a pool: its base and all its adapters stay as they are, and what chooses between them learns.

The hooks of `attach` and the composers themselves are what gradients go through: a gate is trained as it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.base.modules import placements
from hilora.base.prompts import pad_id
from hilora.compose.delta import Gate
from hilora.compose.stack import stack_sites
from hilora.engine.attach import attach
from hilora.errors import InputError
from hilora.pool.store import explained
from hilora.pool.view import Entry, PoolView
from hilora.train.data import batches, completion_loss
from hilora.train.loop import LOG, OnStep, as_it_was, optimise
from hilora.train.outcome import part_work, run_key, save_part
from hilora.train.recipe import Schedule
from hilora.train.tasks import Rows, TaskExample, encode_tasks
from hilora.types import Plan, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Gates:
    """Gates that are being trained.

    Attributes:
        name: of their work folder.
        named: what is trained.
        gate: step -> the composer with the present numbers.
        plan: (batch, step) -> which adapters each row uses.
        entries: the adapters that they choose between.
        sites: those, stacked.
        tasks: adapter name -> lines to train on.
    """

    name: str
    named: Mapping[str, torch.nn.Parameter]
    gate: Callable[[int], Gate]
    plan: Callable[[Sequence[TaskExample], int], Plan]
    entries: Sequence[Entry]
    sites: Mapping[str, Site]
    tasks: Mapping[str, Rows]


@dataclass(frozen=True)
class FrozenPool:
    """What gates are trained with.

    Args:
        pool: the adapters.
        tasks: adapter name -> its training lines.
        model, tokenizer: the base; left as it was.
        on_step: called with (step, loss, tokens per second).
    """

    pool: PoolView
    tasks: Mapping[str, Rows]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    on_step: OnStep | None = None

    def enabled_tasks(self) -> dict[str, Rows]:
        """The training lines of adapters that may be routed to.

        Raises:
            InputError: there are none.
        """
        enabled = {entry.name for entry in self.pool.entries if entry.enabled}
        found = {name: rows for name, rows in self.tasks.items() if name in enabled}
        if not found:
            raise InputError("There is no training data for any enabled adapter.")
        return found

    def entries(self, names: Sequence[str]) -> list[Entry]:
        """The adapters of these names."""
        return [self.pool.entries[self.pool.index(name)] for name in names]

    def stack(self, entries: Sequence[Entry]) -> dict[str, Site]:
        """Their factors at each site, where the base's modules lie."""
        return stack_sites([self.pool.factors(entry.hash) for entry in entries], placements(self.model))

    def plan(self, entries: Sequence[Entry], keep: Bool[Tensor, "batch adapter"]) -> Plan:
        """Each row uses the adapters that it keeps, whole."""
        return whole_plan([self.pool.index(entry.name) for entry in entries], [entry.rank for entry in entries], keep)

    def optimise(self, gates: Gates, recipe: Schedule) -> None:
        """Train gates; a run that was interrupted goes on.

        Raises:
            InputError: no example fits, or the work folder is of another run.
            PoolError: the work folder cannot be written.
        """
        examples = encode_tasks(gates.tasks, self.tokenizer, recipe.max_tokens)
        work = part_work(self.pool, gates.name)
        with explained(f"write {work}"):
            work.mkdir(parents=True, exist_ok=True)

        def stream() -> Iterator[tuple[int, list[TaskExample]]]:
            yield from enumerate(batches(examples, recipe))

        def loss_of(numbered: tuple[int, list[TaskExample]]) -> Tensor:
            step, batch = numbered
            with attach(self.model, gates.sites, gates.plan(batch, step), gates.gate(step)):
                return completion_loss(self.model, batch, pad_id(self.tokenizer))

        with as_it_was(self.model):
            self.model.requires_grad_(False)
            optimise(
                gates.named,
                stream(),
                loss_of,
                lambda numbered: sum(map(len, numbered[1])),
                recipe,
                work,
                key=f"{self.pool.base.name} {run_key(gates.tasks, gates.entries)}",
                on_step=self.on_step,
            )

    def save(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        entries: Sequence[Entry],
        tasks: Mapping[str, Rows],
        recipe: Schedule,
        **more: Any,
    ) -> Path:
        """Write a part in bf16, its log beside it; the work folder of that name goes. Arguments as of `save_part`."""
        halves = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
        path = save_part(self.pool, kind, halves, entries, tasks, recipe, **more)
        work = part_work(self.pool, kind)
        if work.exists():
            (work / LOG).replace(path.with_suffix(".jsonl"))
            shutil.rmtree(work)
        return path


def whole_plan(ids: Sequence[int], ranks: Sequence[int], keep: Bool[Tensor, "batch adapter"]) -> Plan:
    """Each row uses the adapters that it keeps, whole and with equal weights.

    Args:
        ids: positions of the adapters in the pool.
        ranks: of each.
        keep: whom each row keeps, one at the least.
    """
    rocs = torch.tensor(ranks)
    return Plan(tuple(ids), rocs, keep / keep.sum(1, keepdim=True), keep * rocs, torch.ones(len(keep)), whole=True)
