"""Gates of methods that have trained ones, kind by kind: RouterLoRA, mixtures of experts and SMEAR, Phatgoose.

Each method here says what is learned, on which tasks and under which plans; `train.frozen` does the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hilora.compose.delta import Gate
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import SigmoidGate
from hilora.compose.router_lora import RouterLora
from hilora.errors import HiloraError, InputError
from hilora.pool.trained import load_trained, trained_path
from hilora.pool.view import Entry
from hilora.train.frozen import FrozenPool, Gates
from hilora.train.outcome import check_part, held_part, part_work
from hilora.train.recipe import GateRecipe, check_rank
from hilora.train.tasks import Rows, TaskExample, draw, hash_tasks, tasks_of
from hilora.types import Plan

MOES: dict[str, int | None] = {"moe-soft": None, "moe-top1": 1, "moe-top3": 3, "smear": None}
"""Kinds of mixtures -> experts that a token uses."""
RESERVED = ("phatgoose", "lorahub", *MOES)
"""Names that a RouterLoRA may not have."""


def check_router(name: str) -> None:
    """Refuse to call a RouterLoRA by the name of another method's part.

    Raises:
        InputError: the name is taken.
    """
    if name in RESERVED:
        raise InputError(f"{name!r} is the name of another method's trained part; choose another --name.")


class Trainer(FrozenPool):
    """Trains the gates of each kind. Arguments as of `FrozenPool`."""

    def router(self, recipe: GateRecipe, name: str = "router") -> Path:
        """Train RouterLoRA on a share of the tasks, with adapters left out at random (RAMoLE IV-B-2).

        Args:
            recipe: how.
            name: to save it under.

        Returns:
            the file beside the pool.

        Raises:
            InputError: the name is taken or will not do, the rank is above what a site can have, or there are too few
                adapters.
        """
        check_router(name)
        check_part(self.pool, name)
        tasks = self.enabled_tasks()
        names = tasks_of(tasks, recipe)
        _two(names, "adapters with training data")
        entries, drawn = self.entries(names), draw({n: tasks[n] for n in names}, recipe.per_task, recipe.seed)
        sites = self.stack(entries)
        check_rank(recipe.rank, {place: min(site.down.shape[1], len(site.up)) for place, site in sites.items()})
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
            return self.plan(entries, torch.from_numpy(keep))

        with held_part(self.pool, name):
            self.optimise(Gates(name, named, gate, plan, entries, sites, drawn), recipe)
            tensors = {k: p * scale if k.endswith("|up") else p for k, p in named.items()}
            return self.save(name, tensors, entries, drawn, recipe)

    def moe(self, kind: str, clusters: Mapping[str, str], recipe: GateRecipe) -> Path:
        """Train a mixture of experts, or SMEAR: one adapter of each cluster, drawn by seed.

        Args:
            kind: a key of `MOES`.
            clusters: adapter name -> cluster.
            recipe: how.
        """
        members: dict[str, list[str]] = {}
        tasks = self.enabled_tasks()
        for name in sorted(tasks):
            members.setdefault(clusters[name], []).append(name)
        rng = np.random.default_rng(recipe.seed)
        experts = sorted(str(rng.choice(names)) for _, names in sorted(members.items()))
        _two(experts, "clusters")
        entries, drawn = self.entries(experts), draw(tasks, recipe.per_task, recipe.seed)
        sites = self.stack(entries)
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
            return self.plan(entries, torch.ones(len(batch), len(entries), dtype=torch.bool))

        with held_part(self.pool, kind):
            self.optimise(Gates(kind, named, gate, plan, entries, sites, drawn), recipe)
            return self.save(kind, named, entries, drawn, recipe, experts=experts)

    def phatgoose(self, recipe: GateRecipe, on_adapter: Callable[[str], None] | None = None) -> Path:
        """Train each adapter's gate vectors alone; adapters that have some from the same recipe are left.

        Args:
            recipe: how; `steps` are those of one adapter.
            on_adapter: called with the name of each adapter that is done.
        """
        tasks = self.enabled_tasks()
        drawn = draw(tasks, recipe.per_task, recipe.seed)
        with held_part(self.pool, "phatgoose"):
            tensors, keys = self._vectors()
            path = trained_path(self.pool.path, "phatgoose")
            for entry in self.entries(sorted(tasks)):
                own = {entry.name: drawn[entry.name]}
                key = " ".join([hash_tasks(own), json.dumps(asdict(recipe), sort_keys=True)])
                if keys.get(entry.hash) != key:
                    named, work = self._alone(entry, own, recipe)
                    tensors = {k: v for k, v in tensors.items() if k.rsplit("|", 1)[1] != entry.hash}
                    tensors |= {f"{site}|{entry.hash}": p.detach() for site, p in named.items()}
                    keys[entry.hash] = key
                    done = [each for each in self.pool.entries if each.hash in keys]
                    path = self.save("phatgoose", tensors, done, drawn, recipe, keys=keys)
                    shutil.rmtree(work)
                if on_adapter:
                    on_adapter(entry.name)
        return path

    def _alone(
        self, entry: Entry, own: Mapping[str, Rows], recipe: GateRecipe
    ) -> tuple[dict[str, torch.nn.Parameter], Path]:
        """One adapter's gate vectors, trained on its own lines, and the work folder that they leave."""
        name, sites = f"phatgoose-{entry.name}", self.stack([entry])
        named = {place: torch.nn.Parameter(torch.zeros(site.down.shape[1])) for place, site in sites.items()}
        alone = self.plan([entry], torch.ones(1, 1, dtype=torch.bool))

        def plan(batch: Sequence[TaskExample], step: int) -> Plan:
            return alone.take([0] * len(batch))

        self.optimise(Gates(name, named, lambda step: SigmoidGate(named), plan, [entry], sites, own), recipe)
        return named, part_work(self.pool, name)

    def _vectors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def _two(names: Sequence[str], what: str) -> None:
    """Refuse fewer than two of something between which gates are to choose."""
    if len(names) < 2:
        raise InputError(
            f"Gates choose between adapters; there are too few {what}: {list(names)}. Give at least two."
        )
