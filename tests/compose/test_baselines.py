"""The composers of the baselines against loops written from their papers, one token and one adapter at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hilora.compose.arrow import Arrow
from hilora.compose.delta import Gate, plain
from hilora.compose.fusion import Fused
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.errors import InputError
from hilora.pool.canonical import canonical_factors
from hilora.types import Factors, Plan

IN, OUT, RANKS, BATCH, EACH = 12, 10, [4, 2, 4, 6], 5, 3
CPU = torch.device("cpu")


@pytest.fixture
def adapters() -> list[Factors]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [{"site": (random(rank, IN), random(OUT, rank))} for rank in RANKS]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH * EACH, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def plan() -> Plan:
    """Each row uses two or three of the adapters, with weights that sum to 1; the last row uses none."""
    used = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    weights = torch.rand(BATCH, 4, generator=torch.Generator().manual_seed(2)) * used
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-9)
    scale = torch.linspace(0.5, 1.5, BATCH)
    return Plan((0, 1, 2, 3), torch.tensor(RANKS), weights, used * torch.tensor(RANKS), scale, whole=True)


def composed(x: Tensor, adapters: list[Factors], plan: Plan, gate: Gate) -> Tensor:
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    return plain(x, torch.arange(len(x)) // EACH, plan, gate, site)


def loop(x: Tensor, plan: Plan, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    rows = [(token, t // EACH) for t, token in enumerate(x)]
    return torch.stack([one(token, plan.weights[row].double()) * float(plan.scale[row]) for token, row in rows])


def test_weighted_is_the_weighted_sum_of_the_adapters_outputs(x: Tensor, adapters: list[Factors], plan: Plan) -> None:
    def one(token: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros(OUT, dtype=torch.float64)
        for w, factors in zip(weight, adapters, strict=True):
            down, up = factors["site"]
            out += w * (up @ (down @ token))
        return out

    torch.testing.assert_close(composed(x, adapters, plan, Weighted()), loop(x, plan, one))


def test_fused_is_the_product_of_averaged_parameters(x: Tensor, adapters: list[Factors], plan: Plan) -> None:
    def one(token: Tensor, weight: Tensor) -> Tensor:
        down, up = torch.zeros(max(RANKS), IN, dtype=torch.float64), torch.zeros(OUT, max(RANKS), dtype=torch.float64)
        for w, factors in zip(weight, adapters, strict=True):
            a, b = factors["site"]
            for p in range(len(a)):
                down[p] += w * a[p]
                up[:, p] += w * b[:, p]
        return up @ (down @ token)

    got = composed(x, adapters, plan, Fused())
    torch.testing.assert_close(got, loop(x, plan, one))
    assert not torch.allclose(got, composed(x, adapters, plan, Weighted()))  # the cross terms are there


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_arrow_is_the_papers_loop(x: Tensor, adapters: list[Factors], plan: Plan, k: int, temperature: float) -> None:
    def one(token: Tensor, weight: Tensor) -> Tensor:
        logit = {}
        for i, factors in enumerate(adapters):
            down, up = factors["site"]
            v = torch.linalg.svd(up @ down).Vh[0]
            if weight[i] > 0:
                logit[i] = abs(float(v @ token)) / temperature
        best = sorted(logit, key=lambda i: -logit[i])[:k]
        total = sum(math.exp(logit[i]) for i in best)
        out = torch.zeros(OUT, dtype=torch.float64)
        for i in best:
            down, up = adapters[i]["site"]
            out += math.exp(logit[i]) / total * (up @ (down @ token))
        return out

    forms = [canonical_factors(factors) for factors in adapters]
    got = composed(x, forms, plan, Arrow(k, temperature))
    torch.testing.assert_close(got, loop(x, plan, one))


def test_arrow_refuses_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Arrow(0)
    with pytest.raises(InputError, match="above 0"):
        Arrow(3, 0.0)


def test_canonical_rocs_are_the_same_adapter_in_orthogonal_parts(adapters: list[Factors]) -> None:
    for factors in adapters:
        down, up = factors["site"]
        rows, columns = canonical_factors(factors)["site"]
        torch.testing.assert_close(columns @ rows, up @ down)
        rank = len(down)
        torch.testing.assert_close(rows @ rows.T, torch.eye(rank, dtype=torch.float64))
        lengths = columns.norm(dim=0)
        torch.testing.assert_close(columns.T @ columns, torch.diag(lengths.square()))
        assert bool((lengths[:-1] >= lengths[1:]).all())


def test_canonical_rocs_do_not_depend_on_how_the_factors_were_written(adapters: list[Factors]) -> None:
    down, up = adapters[0]["site"]
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for other in ((-down, -up), (mix @ down, up @ torch.linalg.inv(mix)), (3 * down, up / 3)):
        for got, want in zip(
            canonical_factors({"site": other})["site"], canonical_factors(adapters[0])["site"], strict=True
        ):
            torch.testing.assert_close(got, want)


def test_canonical_rocs_of_a_rank_above_the_width_and_of_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    down, up = torch.randn(9, 5, generator=generator), torch.randn(7, 9, generator=generator)
    rows, columns = canonical_factors({"s": (down, up)})["s"]
    assert rows.shape == (5, 5)
    torch.testing.assert_close(columns @ rows, up @ down, rtol=1e-4, atol=1e-4)
    rows, columns = canonical_factors({"s": (down, torch.zeros(7, 9))})["s"]
    assert torch.equal(columns @ rows, torch.zeros(7, 5))
