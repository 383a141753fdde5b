"""Training gates: the right adapter is found where it can be told, nothing but the gate changes, runs go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hilora import HiLoRA, Pool, get_method
from hilora.compose.delta import Gate, Tokens
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import Phatgoose, SigmoidGate
from hilora.compose.router_lora import RouterLora
from hilora.compose.stack import stack_sites
from hilora.engine.attach import attach
from hilora.errors import InputError, MismatchError, PoolError
from hilora.planner import Planner
from hilora.pool.trained import load_trained, trained_path
from hilora.train.gates import MOES, Trainer
from hilora.train.loop import optimise
from hilora.train.recipe import GateRecipe, Schedule
from hilora.train.tasks import draw, read_clusters, read_tasks
from hilora.types import Factors, Plan, Site

IN, OUT, TOKENS = 16, 12, 40
CPU = torch.device("cpu")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Toy:
    """One linear module, two adapters, and tokens of two kinds: adapter i is right for those of kind i."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(IN, OUT)).requires_grad_(False)
        adapters: list[Factors] = [{"0": (random(2, IN, seed=i), random(OUT, 2, seed=i + 5))} for i in range(2)]
        self.sites = stack_sites(adapters, {"0": (CPU, torch.float32)})
        self.alone = [stack_sites([factors], {"0": (CPU, torch.float32)}) for factors in adapters]
        self.centres = random(2, IN, seed=9) * 2

    def plan(self, adapters: int = 2) -> Plan:
        used = torch.full((1, adapters), 2)
        return Plan(tuple(range(adapters)), torch.full((adapters,), 2), used / 4, used, torch.ones(1), whole=True)

    def tokens(self, seed: int) -> tuple[Tensor, Tensor]:
        """(token, in) and the kind of each."""
        kind = torch.arange(TOKENS) % 2
        return self.centres[kind] + random(TOKENS, IN, seed=seed), kind

    def right(self, x: Tensor, kind: Tensor) -> Tensor:
        outputs = torch.stack([x @ s["0"].down.T @ s["0"].up.T for s in self.alone])  # (adapter, token, out)
        return self.model[0].forward(x) + outputs[kind, torch.arange(len(x))]  # without hooks

    def train(
        self,
        named: Mapping[str, nn.Parameter],
        gate: Callable[[], Gate],
        work: Path,
        sites: Mapping[str, Site] | None = None,
        only: int | None = None,
    ) -> None:
        def stream() -> Iterator[int]:
            yield from range(1000)

        def loss_of(step: int) -> Tensor:
            x, kind = self.tokens(step)
            if only is not None:
                x, kind = x[kind == only], kind[kind == only]
            with attach(self.model, sites or self.sites, self.plan(1 if sites else 2), gate()):
                return ((self.model(x) - self.right(x, kind)) ** 2).mean()

        work.mkdir(parents=True)
        optimise(named, stream(), loss_of, lambda step: TOKENS, Schedule(steps=150, lr=0.05), work)

    def weight_of_the_right(self, gate: Gate) -> float:
        """Mean weight of the right adapter on tokens that were not trained on."""
        x, kind = self.tokens(5000)
        site = self.sites["0"]
        z = site.down @ x.T
        weight = (gate(site, self.plan())(z, Tokens(x, torch.zeros(TOKENS, dtype=torch.long))) / z).detach()
        each = torch.stack([weight[site.owner == i].mean(0) for i in range(2)])
        return float(each[kind, torch.arange(TOKENS)].mean())


def test_a_router_lora_learns_which_adapter_is_right(tmp_path: Path) -> None:
    toy = Toy()
    named = {"down": nn.Parameter(random(3, IN, seed=20) / 4), "up": nn.Parameter(torch.zeros(OUT, 3))}

    def gate() -> Gate:
        return RouterLora({"0": (named["down"], named["up"])})

    assert toy.weight_of_the_right(gate()) == pytest.approx(0.5)
    toy.train(named, gate, tmp_path / "work")
    assert toy.weight_of_the_right(gate()) > 0.9


@pytest.mark.parametrize("kind", MOES)
def test_a_mixture_learns_which_expert_is_right(kind: str, tmp_path: Path) -> None:
    toy = Toy()
    named = {"0": nn.Parameter(torch.zeros(2, IN))}
    noise = torch.Generator().manual_seed(0) if MOES[kind] else None

    def gate(source: torch.Generator | None = noise) -> Gate:
        return Moe(named, (0, 1), MOES[kind], kind == "smear", source)

    toy.train(named, gate, tmp_path / "work")
    if kind != "smear":  # what counts there is no weight on one adapter's output
        assert toy.weight_of_the_right(gate(None)) > 0.9
    x, kinds = toy.tokens(5000)
    with attach(toy.model, toy.sites, toy.plan(), gate(None)):
        found = toy.model(x)
    right = toy.right(x, kinds)
    assert ((found - right) ** 2).mean() < 0.1 * ((toy.model(x) - right) ** 2).mean()


def test_gates_trained_one_by_one_find_the_right_adapter_together(tmp_path: Path) -> None:
    toy, vectors = Toy(), []
    for i in range(2):
        vector = nn.Parameter(torch.zeros(IN))
        toy.train({"0": vector}, lambda v=vector: SigmoidGate({"0": v}), tmp_path / str(i), toy.alone[i], only=i)
        vectors.append(vector.detach())
    assert toy.weight_of_the_right(Phatgoose({"0": torch.stack(vectors)})) > 0.9


# --- on a language model ----------------------------------------------------------------------------------

RECIPE = GateRecipe(steps=6, batch=4, lr=0.01, per_task=6, rank=2, alpha=4)
TASKS = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def world(tmp_path: Path, shared_pool: Any, tiny: Any) -> tuple[Any, Pool, Path]:
    """The base, a pool of one's own without trained parts, and training data."""
    model, shared = shared_pool("llama")
    shutil.copytree(shared.path, tmp_path / "pool", ignore=shutil.ignore_patterns("trained"))
    data = tmp_path / "data"
    data.mkdir()
    for task in TASKS:
        lines = [
            json.dumps({"inputs": text, "targets": task[0] * 3, "cluster": "greek" if task < "c" else "other"})
            for text in tiny.texts(task, 10, seed=4)
        ]
        (data / f"{task}.jsonl").write_text("\n".join(lines))
    return model, Pool.open(tmp_path / "pool"), data


def trainer(world: tuple[Any, Pool, Path], tokenizer: Any, **more: Any) -> Trainer:
    model, pool, data = world
    return Trainer(pool, read_tasks(data, pool.names), model, tokenizer, **more)


def train(each: Trainer, kind: str, data: Path, recipe: GateRecipe = RECIPE) -> Path:
    if kind in MOES:
        return each.moe(kind, read_clusters(data, TASKS), recipe)
    return getattr(each, kind)(recipe)


METHOD = {"router": "ramole"}


@pytest.mark.parametrize("kind", ["router", "phatgoose", *MOES])
def test_training_changes_the_gate_alone_and_the_method_serves_with_it(
    kind: str, world: Any, tokenizer: Any, embedder: Any
) -> None:
    model, pool, data = world
    before = {name: p.clone() for name, p in model.named_parameters()}
    files = {path: path.read_bytes() for path in pool.path.rglob("*") if path.is_file()}
    with pytest.raises(PoolError, match="has a trained part"):
        Planner(pool, get_method(METHOD.get(kind, kind)), embedder)
    steps: list[int] = []
    path = train(trainer(world, tokenizer, on_step=lambda step, loss, speed: steps.append(step)), kind, data)
    assert path == trained_path(pool.path, kind)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == dict.fromkeys(before, True)
    assert {path: path.read_bytes() for path in files} == files
    assert steps == list(range(1, 7)) * (4 if kind == "phatgoose" else 1)
    found = load_trained(pool, kind)
    assert found.recipe["steps"] == 6
    learnt = [tensor for key, tensor in found.tensors.items() if not key.endswith("|down")]  # that starts at random
    assert any(float(tensor.abs().max()) > 0 for tensor in learnt)
    assert not list(path.parent.glob(".training*"))
    router = HiLoRA(model, tokenizer, Planner(pool, get_method(METHOD.get(kind, kind)), embedder))
    (answer,) = router.generate(["abab baab"], max_new_tokens=4)
    assert answer.choices


@pytest.mark.parametrize("kind", ["router", "moe-top1", "phatgoose"])
def test_an_interrupted_training_gives_the_same_gates(kind: str, world: Any, tokenizer: Any) -> None:
    _, pool, data = world
    recipe = replace(RECIPE, steps=27, batch=1)  # a checkpoint is written after 25
    whole = dict(load_tensors(train(trainer(world, tokenizer), kind, data, recipe)))
    shutil.rmtree(pool.path / "trained")

    def stop(step: int, loss: float, speed: float) -> None:
        if step == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer(world, tokenizer, on_step=stop), kind, data, recipe)
    again = dict(load_tensors(train(trainer(world, tokenizer), kind, data, recipe)))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("kind", ["router", "moe-top1", "phatgoose"])
def test_no_second_run_trains_the_same_part_meanwhile(kind: str, world: Any, tokenizer: Any) -> None:
    second, told = trainer(world, tokenizer), []

    def meanwhile(step: int, loss: float, speed: float) -> None:
        with pytest.raises(InputError, match="Another run is writing") as caught:
            train(second, kind, world[2])
        told.append(str(caught.value))

    train(trainer(world, tokenizer, on_step=meanwhile), kind, world[2], replace(RECIPE, steps=1))
    assert told
    train(second, kind, world[2], replace(RECIPE, steps=1))


def load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_a_share_of_the_tasks_trains_the_router_and_the_others_stay_unknown(world: Any, tokenizer: Any) -> None:
    train(trainer(world, tokenizer), "router", world[2], replace(RECIPE, share=0.5))
    assert len(load_trained(world[1], "router").adapters) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.8])
def test_a_router_is_trained_with_adapters_left_out_at_random_but_never_all(
    world: Any, tokenizer: Any, monkeypatch: Any, dropout: float
) -> None:
    kept: list[Tensor] = []

    def recorded(model: Any, sites: Any, plan: Plan, gate: Gate) -> Any:
        assert plan.ranks.tolist() == [world[1].entries[i].rank for i in plan.ids]
        assert bool(((plan.rocs == 0) | (plan.rocs == plan.ranks)).all())
        kept.append(plan.rocs > 0)
        return attach(model, sites, plan, gate)

    monkeypatch.setattr("hilora.train.frozen.attach", recorded)
    recipe = replace(RECIPE, steps=40, share=1.0, dropout=dropout)
    train(trainer(world, tokenizer), "router", world[2], recipe)
    rows = torch.cat(kept)
    assert rows.shape == (40 * 4, len(TASKS))
    assert bool(rows.any(1).all())
    each = 1 - dropout + dropout ** len(TASKS) / len(TASKS)  # where all would be left out, one stays
    assert rows.double().mean(0).tolist() == pytest.approx([each] * len(TASKS), abs=0.12 if dropout else 0)
    if dropout:
        assert len({tuple(row) for step in kept for row in step.tolist()}) > len(TASKS)
        assert any(len({tuple(row) for row in step.tolist()}) > 1 for step in kept)  # each row has its own


def test_a_router_that_was_trained_with_adapters_left_out_is_served_without(
    world: Any, tokenizer: Any, embedder: Any
) -> None:
    model, pool, data = world
    train(trainer(world, tokenizer), "router", data, replace(RECIPE, dropout=0.9))
    planner = Planner(pool, get_method("ramole", k=len(TASKS)), embedder)
    texts = ["abab baab", "zzy xyz", "1132 3211"]
    for seed in range(3):
        for choices in planner.explain(planner.route(texts), seed):
            assert {choice.name: choice.rocs for choice in choices} == {e.name: e.rank for e in pool.entries}
    router = HiLoRA(model, tokenizer, planner)
    answers = [router.generate(texts, max_new_tokens=6, seed=seed) for seed in range(2)]
    assert answers[0] == answers[1]


def test_one_expert_of_each_cluster_is_drawn(world: Any, tokenizer: Any) -> None:
    train(trainer(world, tokenizer), "moe-soft", world[2])
    found = load_trained(world[1], "moe-soft")
    clusters = read_clusters(world[2], TASKS)
    assert sorted(clusters[name] for name in found.recipe["experts"]) == ["greek", "other"]


def test_an_adapter_added_later_is_served_by_the_router_and_refused_by_gates(
    world: Any, tokenizer: Any, embedder: Any, tiny: Any, tmp_path: Path
) -> None:
    model, pool, data = world
    for kind in ("router", "phatgoose"):
        train(trainer(world, tokenizer), kind, data)
    folder = tiny.adapter(tmp_path / "new", tiny.sites(model, "llama"), rank=3, seed=77)
    with pytest.MonkeyPatch.context() as patch:
        from tests.conftest import default_weights

        default_weights(patch)
        pool.add("epsilon", folder, tiny.texts("alpha", 5, seed=8), embedder)
    planner = Planner(pool, get_method("ramole"), embedder)
    (choices,) = planner.explain(planner.route(["abab"], allow=["epsilon"]))
    assert [choice.name for choice in choices] == ["epsilon"]
    with pytest.raises(MismatchError, match="trained without epsilon"):
        Planner(pool, get_method("phatgoose"), embedder)
    pool.remove("alpha")
    train(Trainer(pool, read_tasks(data, pool.names), model, tokenizer), "moe-soft", data)
    pool.remove(load_trained(pool, "moe-soft").recipe["experts"][0])
    with pytest.raises(MismatchError, match="experts that this pool lacks"):
        Planner(pool, get_method("moe-soft"), embedder)


def test_a_trained_part_that_is_damaged_or_of_another_base_is_refused(
    world: Any, tokenizer: Any, embedder: Any
) -> None:
    _, pool, data = world
    path = train(trainer(world, tokenizer), "router", data)
    found = load_trained(pool, "router")
    site = next(iter(found.base))
    replace(found, base={**found.base, site: (1, 2)}).save(pool.path)
    with pytest.raises(MismatchError, match="was trained for a base with"):
        load_trained(pool, "router")
    path.write_bytes(b"nothing")
    with pytest.raises(PoolError, match="is damaged"):
        load_trained(pool, "router")


def test_gates_of_adapters_without_data_are_kept_and_a_new_recipe_replaces_them_one_by_one(
    world: Any, tokenizer: Any, embedder: Any
) -> None:
    model, pool, data = world
    train(trainer(world, tokenizer), "phatgoose", data)
    before = load_trained(pool, "phatgoose").tensors
    some = Trainer(pool, read_tasks(data, ["alpha"]), model, tokenizer)
    train(some, "phatgoose", data)
    train(some, "phatgoose", data, replace(RECIPE, steps=2))
    after = load_trained(pool, "phatgoose")
    changed = {key.rsplit("|", 1)[1] for key in before if not torch.equal(before[key], after.tensors[key])}
    assert changed == {pool.entries[pool.index("alpha")].hash}
    assert set(after.adapters) == set(TASKS)
    Planner(pool, get_method("phatgoose"), embedder)
    trained_path(pool.path, "phatgoose").write_bytes(b"nothing")
    assert set(
        load_trained(pool, "phatgoose").adapters if train(trainer(world, tokenizer), "phatgoose", data) else ()
    )


@pytest.mark.parametrize("kind", ["router", "moe-soft", "phatgoose"])
def test_a_run_does_not_go_on_with_other_data(kind: str, world: Any, tokenizer: Any) -> None:
    model, pool, data = world
    recipe = replace(RECIPE, steps=27, batch=1)

    def stop(step: int, loss: float, speed: float) -> None:
        if step == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer(world, tokenizer, on_step=stop), kind, data, recipe)
    tasks = {name: [{**row, "targets": "zz"} for row in rows] for name, rows in read_tasks(data, TASKS).items()}
    with pytest.raises(InputError, match="other data or adapters"):
        train(Trainer(pool, tasks, model, tokenizer), kind, data, recipe)


@pytest.mark.parametrize("kind", ["router", "phatgoose", "moe-top1"])
@pytest.mark.parametrize("base", ["t5", "gpt2"])
def test_gates_of_other_bases_are_trained(
    kind: str, base: str, shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    model, shared = shared_pool(base)
    shutil.copytree(shared.path, tmp_path / "pool", ignore=shutil.ignore_patterns("trained"))
    pool, recipe = Pool.open(tmp_path / "pool"), replace(RECIPE, steps=2)
    tasks = {name: [{"inputs": text, "targets": "ab"} for text in tiny.texts(name, 4)] for name in TASKS}
    each = Trainer(pool, tasks, model, tokenizer)
    if kind in MOES:
        each.moe(kind, dict(zip(TASKS, "aabb", strict=True)), recipe)
    else:
        getattr(each, kind)(recipe)
    router = HiLoRA(model, tokenizer, Planner(pool, get_method(METHOD.get(kind, kind)), embedder))
    assert router.generate(["abab"], max_new_tokens=3)[0].choices


def test_disabled_adapters_are_no_experts_and_train_nothing(world: Any, tokenizer: Any) -> None:
    _, pool, data = world
    for name in ("alpha", "beta"):
        pool.enable(name, False)
    with pytest.raises(InputError, match="too few clusters"):
        train(trainer(world, tokenizer), "moe-soft", data)
    pool.enable("beta")
    train(trainer(world, tokenizer), "moe-soft", data)
    assert "alpha" not in load_trained(pool, "moe-soft").recipe["experts"]


def test_a_routers_name_leads_nowhere_else(world: Any, tokenizer: Any, embedder: Any) -> None:
    for bad in ("../x", "A", ""):
        with pytest.raises(InputError, match="lower-case letters"):
            trainer(world, tokenizer).router(RECIPE, bad)
        with pytest.raises(InputError, match="lower-case letters"):
            Planner(world[1], get_method("ramole", router=bad), embedder)
    with pytest.raises(InputError, match="another method's trained part"):
        trainer(world, tokenizer).router(RECIPE, "moe-soft")
    train(trainer(world, tokenizer), "moe-soft", world[2])
    with pytest.raises(PoolError, match="is damaged"):
        Planner(world[1], get_method("ramole", router="moe-soft"), embedder)


def test_trained_numbers_of_the_wrong_shape_or_not_finite_are_refused(
    world: Any, tokenizer: Any, embedder: Any
) -> None:
    _, pool, data = world
    train(trainer(world, tokenizer), "router", data)
    found = load_trained(pool, "router")
    key = next(iter(found.tensors))
    replace(found, tensors={**found.tensors, key: found.tensors[key][:, :-1]}).save(pool.path)
    with pytest.raises(PoolError, match="expected shape"):
        Planner(pool, get_method("ramole"), embedder)
    replace(found, tensors={**found.tensors, key: found.tensors[key] * float("nan")}).save(pool.path)
    with pytest.raises(PoolError, match="not finite"):
        Planner(pool, get_method("ramole"), embedder)


def test_recipes_and_data_that_make_no_sense_are_refused(world: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dropout"):
        GateRecipe(dropout=1.0)
    with pytest.raises(InputError, match="share"):
        GateRecipe(share=0.0)
    with pytest.raises(InputError, match="for any adapter of the pool"):
        read_tasks(tmp_path, world[1].names)
    with pytest.raises(InputError, match="Raise --max-tokens"):
        train(trainer(world, tokenizer), "router", world[2], replace(RECIPE, max_tokens=2))


def test_rows_are_drawn_by_seed_and_name() -> None:
    rows = {name: [{"inputs": str(i), "targets": ""} for i in range(30)] for name in ("a", "b")}
    assert draw(rows, 5, 0) == draw(rows, 5, 0)
    assert draw(rows, 5, 0)["a"] == draw({"a": rows["a"]}, 5, 0)["a"]
    assert draw(rows, 5, 0)["a"] != draw(rows, 5, 0)["b"]
    assert draw(rows, 5, 0) != draw(rows, 5, 1)
    assert len(draw(rows, 50, 0)["a"]) == 30
