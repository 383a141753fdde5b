"""LoRAHub: the loss is that of the merged adapter, and what the search finds is what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora import HiLoRA, Pool, get_method
from hilora.compose.weighted import Weighted
from hilora.engine.attach import attach
from hilora.errors import InputError
from hilora.merge.average import combine
from hilora.merge.lorahub import WeightedSum
from hilora.planner import Planner
from hilora.pool.source import samples_for
from hilora.pool.trained import load_trained
from hilora.train.data import completion_loss
from hilora.train.lorahub import hub_loss, make_adapter, train_lorahub
from hilora.train.recipe import HubRecipe
from hilora.train.tasks import encode_tasks


def test_merged_parameters_are_weighted_sums_of_a_and_of_b(shared_pool: Any) -> None:
    _, pool = shared_pool("llama")
    factors = [pool.factors(entry.hash) for entry in pool.entries]
    weights = [0.5, -1.0, 2.0, 0.0]
    merged = WeightedSum((("h0", 0.5), ("h1", -1.0), ("h2", 2.0)))(factors, ["h0", "h1", "h2", "h3"])
    for site, (down, up) in merged.items():
        wide = torch.zeros(down.shape, dtype=torch.float64)
        high = torch.zeros(up.shape, dtype=torch.float64)
        for weight, own in zip(weights, factors, strict=True):
            a, b = own[site]
            wide[: len(a)] += weight * a
            high[:, : len(a)] += weight * b
        torch.testing.assert_close(down.double(), wide, rtol=0, atol=1e-6)
        torch.testing.assert_close(up.double(), high, rtol=0, atol=1e-6)


def test_the_loss_is_that_of_the_merged_adapter_and_training_serves_it(
    shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    model, shared = shared_pool("llama")
    shutil.copytree(shared.path, tmp_path / "pool", ignore=shutil.ignore_patterns("trained"))
    pool = Pool.open(tmp_path / "pool")
    tasks = {
        name: [{"inputs": text, "targets": "abc"[: n % 3 + 1]} for n, text in enumerate(tiny.texts(name, 6, seed=2))]
        for name in pool.names
    }
    recipe = HubRecipe(members=3, evaluations=9, batch=4, per_task=4)
    steps: list[tuple[int, float]] = []
    path = train_lorahub(
        pool, tasks, recipe, model=model, tokenizer=tokenizer, on_step=lambda n, value: steps.append((n, value))
    )
    assert [n for n, _ in steps] == list(range(1, 10))
    found = load_trained(pool, "lorahub")
    weights, members = found.tensors["weights"].tolist(), found.recipe["drawn"]
    assert any(weights)
    adapters = [pool.factors(found.adapters[name]) for name in members]
    merged = combine(adapters, weights)

    router = HiLoRA(model, tokenizer, Planner(pool, get_method("lorahub"), embedder))
    routed = router.planner.route(["abab"])
    assert routed.route is not None
    served = routed.source.factors(routed.source.entries[int(routed.route.ids[0, 0])].hash)
    for site, (down, up) in merged.items():
        torch.testing.assert_close(served[site][1] @ served[site][0], up @ down)

    # one example at a time, under the merged adapter
    loss = hub_loss(adapters, tasks, recipe, model, tokenizer)(weights)
    total, tokens = 0.0, 0
    for example in encode_tasks(tasks, tokenizer, 512):
        plan = router.planner.plan(routed, [0])
        sites = router.lanes.bank.sites_of(plan, routed.source)
        with torch.inference_mode(), attach(model, sites, plan, Weighted()):
            total += float(completion_loss(model, [example], 0)) * len(example.completion)
        tokens += len(example.completion)
    assert loss == pytest.approx(total / tokens, rel=1e-5)
    assert path.with_suffix(".jsonl").exists()


def test_an_adapter_is_made_of_others_and_can_be_added(
    shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    model, shared = shared_pool("llama")
    shutil.copytree(shared.path, tmp_path / "pool", ignore=shutil.ignore_patterns("trained"))
    pool = Pool.open(tmp_path / "pool")
    rows = [{"inputs": text, "targets": "ab"} for text in tiny.texts("alpha", 6, seed=2)]
    recipe, out = HubRecipe(members=3, evaluations=9, per_task=4), tmp_path / "made"
    common: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "without": ["alpha"]}
    with pytest.raises(ZeroDivisionError):  # at the fifth evaluation; four are kept
        make_adapter(pool, rows, out, recipe, on_step=lambda n, loss: 1 // (5 - n), **common)
    seen: list[int] = []
    assert make_adapter(pool, rows, out, recipe, on_step=lambda n, loss: seen.append(n), **common) == out
    assert len(seen) == 9 - 4
    weights = json.loads((out / "recipe.json").read_text())["weights"]
    assert set(weights) == {"beta", "gamma", "delta"}
    expected = combine(
        [pool.factors(pool.entries[pool.index(name)].hash) for name in weights], list(weights.values())
    )

    pool.add("made", out, samples_for("made", out, None), embedder)
    again = Pool.open(pool.path)
    for site, (down, up) in again.factors(again.entries[again.index("made")].hash).items():
        torch.testing.assert_close(up @ down, (expected[site][1] @ expected[site][0]).to(up.dtype))
    with pytest.raises(InputError, match="exists"):
        make_adapter(pool, rows, out, recipe, **common)
    with pytest.raises(InputError, match="at least 2 adapters"):
        make_adapter(
            pool, rows, tmp_path / "other", recipe, **common | {"without": ["alpha", "beta", "gamma", "made"]}
        )
