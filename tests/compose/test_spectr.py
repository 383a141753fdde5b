"""SpectR and LAG against loops written from their papers, one token and one adapter at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hilora.compose.arrow import Arrow
from hilora.compose.delta import Gate, plain
from hilora.compose.lag import Lag
from hilora.compose.spectr import SCORES, WEIGHTS, Spectr
from hilora.compose.stack import stack_sites
from hilora.errors import InputError, UnknownNameError
from hilora.methods.lookup import get_method
from hilora.pool.canonical import canonical_factors
from hilora.types import Factors, Plan

IN, OUT, RANKS, BATCH, EACH = 12, 10, [4, 2, 4, 6, 3], 5, 3
CPU = torch.device("cpu")


@pytest.fixture
def adapters() -> list[Factors]:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [{"site": (random(rank, IN), random(OUT, rank) / (1 + i))} for i, rank in enumerate(RANKS)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH * EACH, IN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.fixture
def plan() -> Plan:
    """The first row may use all, others some; the last row none."""
    used = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    weights = used / used.sum(1, keepdim=True).clamp_min(1)
    scale = torch.linspace(0.5, 1.5, BATCH)
    return Plan(tuple(range(5)), torch.tensor(RANKS), weights, used * torch.tensor(RANKS), scale, whole=True)


def composed(x: Tensor, adapters: list[Factors], plan: Plan, gate: Gate) -> Tensor:
    forms = [canonical_factors(factors) for factors in adapters]
    site = stack_sites(forms, {"site": (CPU, torch.float64)})["site"]
    return plain(x, torch.arange(len(x)) // EACH, plan, gate, site)


def score(token: Tensor, factors: Factors, kind: str) -> float:
    """|B A x|, by the product itself; or the length of x in the singular basis, by numpy's kind of SVD."""
    down, up = factors["site"]
    product = up @ down
    if kind == "output":
        return float((product @ token).norm())
    rows = torch.linalg.svd(product, full_matrices=False).Vh[: len(down)]
    return math.sqrt(sum(float(row @ token) ** 2 for row in rows))


def shares(scores: dict[int, float], k: int, weights: str, temperature: float) -> dict[int, float]:
    best = sorted(scores, key=lambda i: -scores[i])[:k]
    if weights == "equal":
        return {i: 1 / len(best) for i in best}
    total = sum(math.exp(scores[i] / temperature) for i in best)
    return {i: math.exp(scores[i] / temperature) / total for i in best}


def loop(x: Tensor, adapters: list[Factors], plan: Plan, shares_of: object) -> Tensor:
    out = torch.zeros(len(x), OUT, dtype=torch.float64)
    for t, token in enumerate(x):
        row = t // EACH
        usable = [i for i in range(len(adapters)) if plan.rocs[row, i] > 0]
        for i, share in shares_of(token, usable).items():  # type: ignore[operator]
            down, up = adapters[i]["site"]
            out[t] += float(plan.scale[row]) * share * (up @ (down @ token))
    return out


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (2, 0.4), (4, 1.0), (9, 1.0)])
def test_spectr_is_the_papers_loop(
    x: Tensor, adapters: list[Factors], plan: Plan, k: int, temperature: float, kind: str, weights: str
) -> None:
    def of(token: Tensor, usable: list[int]) -> dict[int, float]:
        return shares({i: score(token, adapters[i], kind) for i in usable}, k, weights, temperature)

    got = composed(x, adapters, plan, Spectr(k, kind, weights, temperature))
    torch.testing.assert_close(got, loop(x, adapters, plan, of))


def test_the_score_is_the_length_of_the_output_however_the_adapter_was_written(
    x: Tensor, adapters: list[Factors], plan: Plan
) -> None:
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    down, up = adapters[0]["site"]
    other = [{"site": (turn @ down, up @ torch.linalg.inv(turn))}, *adapters[1:]]
    for gate in (Spectr(2), Lag(3, 2)):
        torch.testing.assert_close(composed(x, adapters, plan, gate), composed(x, other, plan, gate))


def test_fused_spectr_averages_both_factors_in_the_singular_basis_as_its_code_does(
    x: Tensor, adapters: list[Factors], plan: Plan
) -> None:
    forms = [canonical_factors(factors)["site"] for factors in adapters]
    want, k = torch.zeros(len(x), OUT, dtype=torch.float64), 3
    for t, token in enumerate(x):
        row = t // EACH
        lengths = {i: score(token, adapters[i], "basis") for i in range(5) if plan.rocs[row, i] > 0}
        best = sorted(lengths, key=lambda i: -lengths[i])[:k]
        down, up = torch.zeros(6, IN, dtype=torch.float64), torch.zeros(OUT, 6, dtype=torch.float64)
        for i in best:
            a, b = forms[i]
            down[: len(a)] += a / len(best)
            up[:, : len(a)] += b / len(best)
        want[t] = float(plan.scale[row]) * (up @ (down @ token))
    torch.testing.assert_close(composed(x, adapters, plan, Spectr(k, "basis", fuse=True)), want)
    assert not torch.allclose(want, composed(x, adapters, plan, Spectr(k, "basis")))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("candidates", "k"), [(1, 1), (2, 1), (3, 2), (20, 1), (20, 4)])
def test_lag_is_the_papers_two_stages(
    x: Tensor, adapters: list[Factors], plan: Plan, candidates: int, k: int, kind: str, weights: str
) -> None:
    def of(token: Tensor, usable: list[int]) -> dict[int, float]:
        arrow = {}
        for i in usable:
            down, up = adapters[i]["site"]
            arrow[i] = abs(float(torch.linalg.svd(up @ down).Vh[0] @ token))
        near = sorted(arrow, key=lambda i: -arrow[i])[:candidates]
        return shares({i: score(token, adapters[i], kind) for i in near}, k, weights, 0.7)

    got = composed(x, adapters, plan, Lag(candidates, k, kind, weights, 0.7))
    torch.testing.assert_close(got, loop(x, adapters, plan, of))


def test_lag_is_arrow_at_one_end_and_spectr_at_the_other(x: Tensor, adapters: list[Factors], plan: Plan) -> None:
    torch.testing.assert_close(composed(x, adapters, plan, Lag(1)), composed(x, adapters, plan, Arrow(1)))
    everyone = composed(x, adapters, plan, Spectr(1, "basis"))
    torch.testing.assert_close(composed(x, adapters, plan, Lag(5)), everyone)
    assert not torch.allclose(composed(x, adapters, plan, Lag(1)), everyone)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="got 0, expected at least 1"):
        Spectr(0)
    with pytest.raises(InputError, match="temperature must be above 0"):
        get_method("lag", temperature=0.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'output'"):
        Spectr(score="outputs")
    with pytest.raises(UnknownNameError, match="Did you mean 'equal'"):
        get_method("spectr", weights="equals")
    with pytest.raises(InputError, match="got 2, expected at least 3"):
        Lag(2, 3)
