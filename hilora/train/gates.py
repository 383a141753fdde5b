"""Training the gates of methods that have trained ones: RouterLoRA, mixtures of experts and SMEAR, Phatgoose.

The base and all adapters are frozen. A gate is trained as it is used: the hooks of `attach` and the composers
themselves are what gradients go through.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hilora.base.modules import placements
from hilora.base.prompts import pad_id
from hilora.compose.delta import Gate
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import SigmoidGate
from hilora.compose.router_lora import RouterLora
from hilora.compose.stack import stack_sites
from hilora.engine.attach import attach
from hilora.errors import HiloraError, InputError
from hilora.pool.store import explained
from hilora.pool.trained import TRAINED, Trained, load_trained, trained_path
from hilora.pool.view import Entry, PoolView
from hilora.train.data import batches, completion_loss
from hilora.train.loop import OnStep, as_it_was, optimise
from hilora.train.recipe import Shared
from hilora.train.tasks import Rows, TaskExample, draw, encode_tasks, hash_tasks, tasks_of
from hilora.types import Plan, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOES: dict[str, int | None] = {"moe-soft": None, "moe-top1": 1, "moe-top3": 3, "smear": None}
"""Kinds of mixtures -> experts that a token uses."""


RESERVED = ("phatgoose", "lorahub", *MOES)
"""Names that a RouterLoRA may not have."""


@dataclass(frozen=True, kw_only=True)
class GateRecipe(Shared):
    """How gates are trained.

    Attributes:
        per_task: examples of each task.
        rank, alpha: of RouterLoRA.
        dropout: share of the adapters that each row does without, for RouterLoRA; never all.
        share: of the tasks, for RouterLoRA.
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
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is a share of the adapters: got {self.dropout}, expected 0 <= dropout < 1.")


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
        if name in RESERVED:
            raise InputError(f"{name!r} is the name of another method's trained part; choose another --name.")
        tasks = self._tasks()
        names = tasks_of(tasks, recipe)
        _two(names, "adapters with training data")
        entries, drawn = self._entries(names), draw({n: tasks[n] for n in names}, recipe.per_task, recipe.seed)
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

        self._optimise(name, named, gate, plan, sites, drawn, recipe, entries)
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
        tasks = self._tasks()
        for name in sorted(tasks):
            members.setdefault(clusters[name], []).append(name)
        rng = np.random.default_rng(recipe.seed)
        experts = sorted(str(rng.choice(names)) for _, names in sorted(members.items()))
        _two(experts, "clusters")
        entries, drawn = self._entries(experts), draw(tasks, recipe.per_task, recipe.seed)
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

        self._optimise(kind, named, gate, plan, sites, drawn, recipe, entries)
        return self._save(kind, named, entries, drawn, recipe, experts=experts)

    def phatgoose(self, recipe: GateRecipe, on_adapter: Callable[[str], None] | None = None) -> Path:
        """Train each adapter's gate vectors alone; adapters that have some from the same recipe are left.

        Args:
            recipe: how; `steps` are those of one adapter.
            on_adapter: called with the name of each adapter that is done.
        """
        tasks = self._tasks()
        drawn = draw(tasks, recipe.per_task, recipe.seed)
        tensors, keys = self._gates()
        path = trained_path(self.pool.path, "phatgoose")
        for entry in self._entries(sorted(tasks)):
            own = {entry.name: drawn[entry.name]}
            key = " ".join([hash_tasks(own), json.dumps(asdict(recipe), sort_keys=True)])
            if keys.get(entry.hash) != key:
                sites, work = self._stack([entry]), f"phatgoose-{entry.name}"
                named = {name: torch.nn.Parameter(torch.zeros(site.down.shape[1])) for name, site in sites.items()}
                plan = self._plan([entry], torch.ones(1, 1, dtype=torch.bool))
                self._optimise(
                    work,
                    named,
                    lambda step, named=named: SigmoidGate(named),  # type: ignore[misc]
                    lambda batch, step, plan=plan: plan.take([0] * len(batch)),  # type: ignore[misc]
                    sites,
                    own,
                    recipe,
                    [entry],
                )
                tensors = {k: v for k, v in tensors.items() if k.rsplit("|", 1)[1] != entry.hash}
                tensors |= {f"{site}|{entry.hash}": p.detach() for site, p in named.items()}
                keys[entry.hash] = key
                done = [each for each in self.pool.entries if each.hash in keys]
                path = self._save("phatgoose", tensors, done, drawn, recipe, keys=keys)
                shutil.rmtree(self._work(work))
            if on_adapter:
                on_adapter(entry.name)
        return path

    def _gates(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Gate vectors that are trained already, of adapters that are still there, and what each was trained with."""
        if not trained_path(self.pool.path, "phatgoose").exists():
            return {}, {}
        try:
            found = load_trained(self.pool, "phatgoose")
        except HiloraError:  # damaged, or of another base: all are trained anew
            return {}, {}
        there = {entry.hash for entry in self.pool.entries}
        keys = {content: key for content, key in found.recipe.get("keys", {}).items() if content in there}
        return {k: v for k, v in found.tensors.items() if k.rsplit("|", 1)[1] in keys}, keys

    def _tasks(self) -> dict[str, Rows]:
        """The training lines of adapters that may be routed to.

        Raises:
            InputError: there are none.
        """
        enabled = {entry.name for entry in self.pool.entries if entry.enabled}
        found = {name: rows for name, rows in self.tasks.items() if name in enabled}
        if not found:
            raise InputError("There is no training data for any enabled adapter.")
        return found

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
        entries: Sequence[Entry],
    ) -> None:
        examples = encode_tasks(tasks, self.tokenizer, recipe.max_tokens)
        work = self._work(name)
        with explained(f"write {work}"):
            work.mkdir(parents=True, exist_ok=True)
        key = " ".join([self.pool.base.name, hash_tasks(tasks), *(entry.hash for entry in entries)])

        def stream() -> Iterator[tuple[int, list[TaskExample]]]:
            yield from enumerate(batches(examples, recipe))

        def loss_of(numbered: tuple[int, list[TaskExample]]) -> Tensor:
            step, batch = numbered
            with attach(self.model, sites, plan(batch, step), gate(step)):
                return completion_loss(self.model, batch, pad_id(self.tokenizer))

        with as_it_was(self.model):
            self.model.requires_grad_(False)
            optimise(
                named,
                stream(),
                loss_of,
                lambda numbered: sum(map(len, numbered[1])),
                recipe,
                work,
                key=key,
                on_step=self.on_step,
            )

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


def _two(names: Sequence[str], what: str) -> None:
    """Refuse fewer than two of something between which gates are to choose."""
    if len(names) < 2:
        raise InputError(
            f"Gates choose between adapters; there are too few {what}: {list(names)}. Give at least two."
        )
