"""Training the gates of methods that have trained ones: RouterLoRA, mixtures of experts and SMEAR, Phatgoose.

The base and all adapters are frozen. A gate is trained as it is used: the hooks of `attach` and the composers
themselves are what gradients go through.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hilora.attach import attach, placements
from hilora.compose.delta import Gate, stack_sites
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import SigmoidGate
from hilora.compose.router_lora import RouterLora
from hilora.errors import InputError
from hilora.pool.trained import TRAINED, Trained, load_trained, trained_path
from hilora.pool.view import Entry, PoolView
from hilora.train.data import batches, completion_loss
from hilora.train.loop import OnStep, as_it_was, optimise
from hilora.train.recipe import Schedule
from hilora.train.tasks import Rows, TaskExample, draw, encode_tasks, hash_tasks
from hilora.types import Plan, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOES: dict[str, int | None] = {"moe-soft": None, "moe-top1": 1, "moe-top3": 3, "smear": None}
"""Kinds of mixtures -> experts that a token uses."""


@dataclass(frozen=True, kw_only=True)
class GateRecipe(Schedule):
    """How gates are trained.

    Attributes:
        per_task: examples of each task.
        rank, alpha: of RouterLoRA.
        dropout: share of the adapters that each row does without, for RouterLoRA; never all.
        share: of the tasks that RouterLoRA is trained on; the others stay unknown to it.
        temperature: tau of the Gumbel softmax of sparse mixtures.
    """

    steps: int = 200
    batch: int = 8
    lr: float = 1e-3
    per_task: int = 20
    rank: int = 6
    alpha: int = 12
    dropout: float = 0.5
    share: float = 0.4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is a share of the adapters: got {self.dropout}, expected 0 <= dropout < 1.")
        if not 0 < self.share <= 1:
            raise InputError(f"share is a share of the tasks: got {self.share}, expected 0 < share <= 1.")


@dataclass(frozen=True)
class Trainer:
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

    def router(self, recipe: GateRecipe, name: str = "router") -> Path:
        """Train RouterLoRA on a share of the tasks, with adapters left out at random (RAMoLE IV-B-2).

        Args:
            recipe: how.
            name: to save it under.

        Returns:
            the file beside the pool.
        """
        order = np.random.default_rng(recipe.seed).permutation(sorted(self.tasks))
        names = sorted(order[: max(2, round(recipe.share * len(order)))].tolist())
        entries, drawn = self._entries(names), draw({n: self.tasks[n] for n in names}, recipe.per_task, recipe.seed)
        sites = self._stack(entries)
        generator = torch.Generator().manual_seed(recipe.seed)
        named = {}
        for place, site in sites.items():
            width = site.down.shape[1]
            down = (torch.rand(recipe.rank, width, generator=generator) * 2 - 1) / width**0.5
            named[f"{place}|down"] = torch.nn.Parameter(down)
            named[f"{place}|up"] = torch.nn.Parameter(torch.zeros(len(site.up), recipe.rank))
        scale = recipe.alpha / recipe.rank

        def gate(step: int) -> Gate:
            return RouterLora({place: (named[f"{place}|down"], named[f"{place}|up"] * scale) for place in sites})

        def plan(batch: Sequence[TaskExample], step: int) -> Plan:
            rng = np.random.default_rng([recipe.seed, step])
            keep = rng.random((len(batch), len(entries))) >= recipe.dropout
            keep[np.arange(len(batch)), rng.integers(len(entries), size=len(batch))] |= ~keep.any(1)
            return self._plan(entries, torch.from_numpy(keep))

        self._optimise(name, named, gate, plan, sites, drawn, recipe)
        tensors = {k: p * scale if k.endswith("|up") else p for k, p in named.items()}
        return self._save(name, tensors, entries, drawn, recipe)

    def moe(self, kind: str, clusters: Mapping[str, str], recipe: GateRecipe) -> Path:
        """Train a mixture of experts, or SMEAR: one adapter of each cluster, drawn by seed.

        Args:
            kind: a key of `MOES`.
            clusters: adapter name -> cluster.
            recipe: how.
        """
        members: dict[str, list[str]] = {}
        for name in sorted(self.tasks):
            members.setdefault(clusters[name], []).append(name)
        rng = np.random.default_rng(recipe.seed)
        experts = sorted(str(rng.choice(names)) for _, names in sorted(members.items()))
        entries, drawn = self._entries(experts), draw(self.tasks, recipe.per_task, recipe.seed)
        sites = self._stack(entries)
        named = {
            name: torch.nn.Parameter(torch.zeros(len(entries), site.down.shape[1])) for name, site in sites.items()
        }
        positions = tuple(self.pool.index(entry.name) for entry in entries)
        noise = None if MOES[kind] is None else torch.Generator()

        def gate(step: int) -> Gate:
            if noise is not None:
                noise.manual_seed(recipe.seed * 1_000_003 + step)
            return Moe(named, positions, MOES[kind], kind == "smear", noise, recipe.temperature)

        def plan(batch: Sequence[TaskExample], step: int) -> Plan:
            return self._plan(entries, torch.ones(len(batch), len(entries), dtype=torch.bool))

        self._optimise(kind, named, gate, plan, sites, drawn, recipe)
        return self._save(kind, named, entries, drawn, recipe, experts=experts)

    def phatgoose(self, recipe: GateRecipe, on_adapter: Callable[[str], None] | None = None) -> Path:
        """Train each adapter's gate vectors alone; adapters that have some from the same recipe are left.

        Args:
            recipe: how; `steps` are those of one adapter.
            on_adapter: called with the name of each adapter that is done.
        """
        entries, drawn = self._entries(sorted(self.tasks)), draw(self.tasks, recipe.per_task, recipe.seed)
        tensors: dict[str, Tensor] = {}
        done: list[Entry] = []
        if trained_path(self.pool.path, "phatgoose").exists():
            found = load_trained(self.pool, "phatgoose")
            if found.recipe == asdict(recipe):
                done = [entry for entry in entries if found.adapters.get(entry.name) == entry.hash]
                known = {entry.hash for entry in done}
                tensors = {k: v for k, v in found.tensors.items() if k.rsplit("|", 1)[1] in known}
        path = trained_path(self.pool.path, "phatgoose")
        for entry in entries:
            if entry not in done:
                sites = self._stack([entry])
                named = {name: torch.nn.Parameter(torch.zeros(site.down.shape[1])) for name, site in sites.items()}
                own = {entry.name: drawn[entry.name]}
                plan = self._plan([entry], torch.ones(1, 1, dtype=torch.bool))
                self._optimise(
                    f"phatgoose-{entry.name}",
                    named,
                    lambda step, named=named: SigmoidGate(named),  # type: ignore[misc]
                    lambda batch, step, plan=plan: plan.take([0] * len(batch)),  # type: ignore[misc]
                    sites,
                    own,
                    recipe,
                )
                tensors |= {f"{site}|{entry.hash}": p.detach().to(torch.bfloat16) for site, p in named.items()}
                done.append(entry)
                path = self._save("phatgoose", tensors, done, drawn, recipe)
                shutil.rmtree(self._work(f"phatgoose-{entry.name}"))
            if on_adapter:
                on_adapter(entry.name)
        return path

    def _entries(self, names: Sequence[str]) -> list[Entry]:
        return [self.pool.entries[self.pool.index(name)] for name in names]

    def _stack(self, entries: Sequence[Entry]) -> dict[str, Site]:
        return stack_sites([self.pool.factors(entry.hash) for entry in entries], placements(self.model))

    def _plan(self, entries: Sequence[Entry], keep: Tensor) -> Plan:
        """Each row uses the adapters that it keeps, (batch, adapter), whole."""
        ranks = torch.tensor([entry.rank for entry in entries])
        weights = keep / keep.sum(1, keepdim=True)
        ids = tuple(self.pool.index(entry.name) for entry in entries)
        return Plan(ids, ranks, weights, keep * ranks, torch.ones(len(keep)), whole=True)

    def _optimise(
        self,
        name: str,
        named: Mapping[str, torch.nn.Parameter],
        gate: Callable[[int], Gate],
        plan: Callable[[Sequence[TaskExample], int], Plan],
        sites: Mapping[str, Site],
        tasks: Mapping[str, Rows],
        recipe: GateRecipe,
    ) -> None:
        examples = encode_tasks(tasks, self.tokenizer, recipe.max_tokens)
        work = self._work(name)
        work.mkdir(parents=True, exist_ok=True)
        pad = int(getattr(self.tokenizer, "pad_token_id", None) or 0)

        def stream() -> Iterator[tuple[int, list[TaskExample]]]:
            yield from enumerate(batches(examples, recipe))

        def loss_of(numbered: tuple[int, list[TaskExample]]) -> Tensor:
            step, batch = numbered
            with attach(self.model, sites, plan(batch, step), gate(step)):
                return completion_loss(self.model, batch, pad)

        with as_it_was(self.model):
            self.model.requires_grad_(False)
            optimise(named, stream(), loss_of, lambda b: sum(map(len, b[1])), recipe, work, on_step=self.on_step)

    def _save(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        entries: Sequence[Entry],
        tasks: Mapping[str, Rows],
        recipe: GateRecipe,
        **more: Any,
    ) -> Path:
        used = {key.split("|")[0] for key in tensors}
        path = Trained(
            kind,
            {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()},
            {entry.name: entry.hash for entry in entries},
            {site: shape for site, shape in self.pool.base.sites.items() if site in used},
            self.pool.version,
            hash_tasks(tasks),
            asdict(recipe) | more,
        ).save(self.pool.path)
        work = self._work(kind)
        if work.exists():
            (work / "training.jsonl").replace(path.with_suffix(".jsonl"))
            shutil.rmtree(work)
        return path

    def _work(self, name: str) -> Path:
        return self.pool.path / TRAINED / f".training-{name}"
