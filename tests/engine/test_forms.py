"""Every form gives what the one equation gives, site by site and with all ROCs of the batch."""

import pytest
import torch
from torch import Tensor

from hilora.compose.delta import Gate, plain
from hilora.compose.fusion import Fused
from hilora.compose.pool_rocs import PoolTopRocs
from hilora.compose.rocs import TopRocs
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.engine import forms, stacked
from hilora.engine.bound import Bound
from hilora.engine.forms import Forms
from hilora.engine.fused import FusedTopRocs
from hilora.engine.own import own_rocs
from hilora.engine.stacked import Stacked
from hilora.types import Factors, Plan, Site

CPU = torch.device("cpu")
IN, RANKS, OUT = 12, [4, 2, 4, 8, 2, 4], {"q": 10, "v": 6}


class Likewise(TopRocs):
    """A composer that the engine does not know: it is served as it is."""


GATES = (
    TopRocs(),
    Likewise("contribution"),
    Likewise(),
    TopRocs("contribution"),
    TopRocs("magnitude", weighted=True),
    FusedTopRocs("contribution", weighted=True),
    Weighted(),
    Fused(),
    PoolTopRocs(3),
)


def sites(dtype: torch.dtype = torch.float64) -> list[Site]:
    """Two sites that share an input; the third adapter lacks one, the fourth has half of its rank there."""
    generator = torch.Generator().manual_seed(0)

    def factors(name: str, rank: int) -> tuple[Tensor, Tensor]:
        shapes = (rank, IN), (OUT[name], rank)
        down, up = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        return down, up

    adapters: list[Factors] = [
        {name: factors(name, rank // 2 if (i, name) == (3, "v") else rank) for name in OUT if (i, name) != (2, "q")}
        for i, rank in enumerate(RANKS)
    ]
    return list(stack_sites(adapters, dict.fromkeys(OUT, (CPU, dtype))).values())


def plan(whole: bool = False, most: int = 2) -> Plan:
    """Rows that use none, one or two adapters each."""
    generator = torch.Generator().manual_seed(1)
    used = torch.zeros(5, len(RANKS), dtype=torch.long)
    for row, count in enumerate([0, 1, most, 1, most]):
        used[row, torch.randperm(len(RANKS), generator=generator)[:count]] = 1
    ranks = torch.tensor(RANKS)
    rocs = used * (ranks if whole else torch.tensor([[1], [2], [1], [3], [2]]).minimum(ranks))
    weights = used / used.sum(1, keepdim=True).clamp_min(1)
    return Plan(tuple(range(len(RANKS))), ranks, weights, rocs, torch.rand(5, generator=generator) + 0.5, whole)


def alone(site: Site, gate: Gate, plan: Plan, x: Tensor, output: Tensor) -> Tensor:
    """The equation, for one site."""
    row = torch.arange(len(plan.scale)).repeat_interleave(len(x) // len(plan.scale))
    return output + plain(x, row, plan, gate, site)


@pytest.mark.parametrize("gate", GATES, ids=repr)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("each", [1, 7])
@pytest.mark.parametrize("bound", [0, 10**9])
def test_a_form_gives_what_the_equation_gives(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, whole: bool, each: int, bound: int
) -> None:
    for room, name in ((forms, "GATHER"), (forms, "SMALL"), (stacked, "SPARSE")):
        monkeypatch.setattr(room, name, bound)
    both, rows = sites(), plan(whole)
    x = torch.randn(5, each, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        adds = Forms(Stacked(both), Bound(rows, gate))(x)
        for site, add in zip(both, adds, strict=True):
            output = torch.randn(5, each, OUT[site.name], dtype=torch.float64)
            expected = alone(site, gate, rows, x.flatten(0, 1), output.flatten(0, 1)).view_as(output)
            torch.testing.assert_close(add(output.clone()), expected)


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_gradients_are_those_of_the_equation(gate: Gate) -> None:
    both, rows = sites(), plan()
    x = torch.randn(5, 3, IN, dtype=torch.float64, requires_grad=True)
    (add, _), output = Forms(Stacked(both), Bound(rows, gate))(x), torch.zeros(5, 3, OUT["q"], dtype=torch.float64)
    (got,) = torch.autograd.grad(add(output).square().sum(), x)
    loss = alone(both[0], gate, rows, x.flatten(0, 1), output.flatten(0, 1)).square().sum()
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("each", [1, 9])
def test_half_precision_is_near_the_equation(each: int) -> None:
    both, rows = sites(torch.bfloat16), plan(whole=True)
    x = torch.randn(5, each, IN).bfloat16()
    with torch.no_grad():
        for site, add in zip(both, Forms(Stacked(both), Bound(rows, TopRocs()))(x), strict=True):
            output = torch.zeros(5, each, OUT[site.name], dtype=torch.bfloat16)
            exact = Site(site.down.float(), site.size.float(), site.owner, site.blocks, site.name, site.up.float())
            expected = alone(exact, TopRocs(), rows, x.flatten(0, 1).float(), output.flatten(0, 1).float())
            got = add(output)
            assert got.dtype == torch.bfloat16
            torch.testing.assert_close(got.float().flatten(0, 1), expected, atol=0.2, rtol=0.05)


def test_each_row_gets_its_own_rocs_and_no_more_than_the_row_with_most() -> None:
    both, rows = sites(), plan(most=1)
    own = own_rocs(Stacked(both).layout, rows)
    assert own is not None
    assert own.lengths == [site_places(site, rows) for site in both]
    start = 0
    for site, lies in zip(both, own.index.split(own.lengths), strict=True):
        for row in range(5):
            wanted = torch.nonzero((rows.rocs[row] > 0)[site.owner]).flatten() + start
            picked = lies[:, row].tolist()
            assert set(wanted.tolist()) <= set(picked)
            assert len(set(picked)) == len(picked)
        start += len(site.owner)


def site_places(site: Site, rows: Plan) -> int:
    """ROCs of a row at a site: for each rank, as many adapters as the row with most of them uses."""
    return sum(rank * int((rows.rocs[:, columns] > 0).sum(1).max()) for rank, columns in site.blocks)


def test_where_rows_use_most_of_the_batch_nothing_is_picked() -> None:
    assert own_rocs(Stacked(sites()).layout, plan(most=5)) is None
