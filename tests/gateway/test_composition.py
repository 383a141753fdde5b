"""A composition adds what its plan adds; the same one has the same name, and another has another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hilora import Planner, get_method
from hilora.compose.delta import plain
from hilora.compose.stack import stack_sites
from hilora.errors import InputError
from hilora.gateway.composition import RANKS, compose, factors_of, needed_rank
from hilora.gateway.parts import Part, Room, check_method, parts_of
from hilora.pool.export import write_peft
from hilora.types import Route

PROMPTS = ["abab baab abba aaa", "zzy xyz mno", "mmnn onm noom mno mno", "1132 3211 xyx 2231 1132"]
WHOLE = [("selection", {}), ("mixture", {"k": 3}), ("hilora-gs", {}), ("hilora-plus", {}), ("hilora", {"gamma": 1.0})]


def parts(*factors: float) -> list[Part]:
    return [Part(f"{place:064x}", factor, 4, 4) for place, factor in enumerate(factors)]


@pytest.mark.parametrize(("name", "options"), WHOLE)
def test_a_composition_adds_what_its_plan_adds(name: str, options: Any, shared_pool: Any, embedder: Any) -> None:
    pool = shared_pool("llama")[1]
    planner = Planner(pool, check_method(get_method(name, **options), whole=True), embedder)
    routed = planner.route(PROMPTS)
    for row in range(len(PROMPTS)):
        plan = planner.plan(routed, [row])
        made = compose(parts_of(planner.method, routed.source, plan))
        assert made is not None
        factors = factors_of(made, pool.factors)
        used = [routed.source.factors(routed.source.entries[place].hash) for place in plan.ids]
        placement = dict.fromkeys(factors, (torch.device("cpu"), torch.float64))
        for site in stack_sites(used, placement).values():
            x = torch.randn(5, site.down.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(row))
            expected = plain(x, torch.zeros(5, dtype=torch.long), plan, planner.method.gate, site)
            down, up = (factor.double() for factor in factors[site.name])
            assert down.shape[0] <= made.rank
            torch.testing.assert_close(x @ down.T @ up.T, expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(1, 8))
def test_a_grid_keeps_the_sum_and_few_ratios(factors: list[float], levels: int) -> None:
    made = compose(parts(*factors), levels=levels)
    assert made is not None
    kept = [factor for _, factor in made.parts]
    assert sum(kept) == pytest.approx(sum(factors))
    ratios = [levels * factor / max(kept) for factor in kept]
    assert ratios == pytest.approx([round(ratio) for ratio in ratios])


def test_equal_factors_stay_equal_and_small_ones_go() -> None:
    made = compose(parts(0.3, 0.3, 0.3), levels=4)
    assert made is not None
    assert [factor for _, factor in made.parts] == pytest.approx([0.3] * 3)
    made = compose(parts(0.9, 0.05), levels=4)
    assert made is not None
    assert len(made.parts) == 1
    assert made.rank == 4


def test_near_weights_are_one_composition_and_others_are_not() -> None:
    def name(*factors: float, levels: int | None = 4) -> str:
        made = compose(parts(*factors), levels=levels)
        assert made is not None
        return made.name

    assert name(0.7, 0.3) == name(0.69, 0.31)
    assert name(0.7, 0.3, levels=None) != name(0.69, 0.31, levels=None)
    assert name(0.7, 0.3) != name(0.3, 0.7)
    assert name(1.0) != name(0.5)
    assert compose([]) is None


def test_rocs_that_are_chosen_by_token_are_no_composition() -> None:
    with pytest.raises(InputError, match="token by token"):
        compose([Part("0" * 64, 1.0, 3, 4)])
    with pytest.raises(InputError, match="1 or more; got 0"):
        compose(parts(1.0), levels=0)


@pytest.mark.parametrize("name", ["fusion", "arrow", "merged", "ramole", "hilora-roc", "spectr", "lag"])
def test_methods_that_are_no_fixed_sum_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is not a fixed sum"):
        check_method(get_method(name))


def test_a_method_that_chooses_rocs_is_refused_where_adapters_are_whole() -> None:
    assert check_method(get_method("hilora")).name == "hilora"
    with pytest.raises(InputError, match=r"gamma 0\.4 chooses ROCs"):
        check_method(get_method("hilora"), whole=True)


def test_vllm_is_asked_for_the_smallest_rank_that_it_takes() -> None:
    assert [needed_rank(rank) for rank in (1, 8, 24, 33, 512)] == [1, 8, 32, 64, 512]
    assert [needed_rank(rank) for rank in RANKS] == list(RANKS)
    with pytest.raises(InputError, match="513"):
        needed_rank(513)


def rows(*weights: Sequence[float]) -> Route:
    ids = torch.arange(len(weights[0])).expand(len(weights), -1)
    return Route(ids, torch.tensor(weights), torch.tensor(weights))


def test_the_likeliest_adapters_find_room() -> None:
    route = rows([0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.7, 0.0])
    fitted, left = Room(ranks=12).within(route, [8, 4, 4, 1])
    torch.testing.assert_close(fitted.weights, torch.tensor([[0.625, 0.375, 0, 0], [0, 2 / 9, 7 / 9, 0]]))
    assert left == [1, 1]
    fitted, left = Room(adapters=1).within(route, [8, 4, 4, 1])
    assert fitted.weights.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    same, left = Room().within(route, [8, 4, 4, 1])
    assert same is route
    assert left == [0, 0]
    none, left = Room(ranks=3).within(route, [8, 4, 4, 4])
    assert not none.weights.any()
    assert left == [3, 3]


def test_a_written_composition_is_what_peft_reads(tmp_path: Path, shared_pool: Any) -> None:
    pool = shared_pool("llama")[1]
    made = compose([Part(entry.hash, 0.5, entry.rank, entry.rank) for entry in pool.entries])
    assert made is not None
    write_peft(tmp_path / made.name, factors_of(made, pool.factors), "tiny")
    config = json.loads((tmp_path / made.name / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == sum(entry.rank for entry in pool.entries) == made.rank
    assert len(load_file(tmp_path / made.name / "adapter_model.safetensors")) == 2 * len(config["target_modules"])
