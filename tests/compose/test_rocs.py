"""The token-level kernels against scalar loops written from the papers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hilora.compose.delta import Gate, Spread, plain
from hilora.compose.pool_rocs import PoolTopRocs
from hilora.compose.rocs import CRITERIA, TopRocs, places, row_sizes
from hilora.compose.stack import stack_sites
from hilora.errors import HiloraError
from hilora.types import Factors, Plan, Site

CPU = torch.device("cpu")
IN, OUT = 12, 10


def random_adapters(ranks: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "site": (
                torch.randn(rank, IN, generator=generator, dtype=torch.float64).to(dtype),
                torch.randn(OUT, rank, generator=generator, dtype=torch.float64).to(dtype),
            )
        }
        for rank in ranks
    ]


def random_plan(ranks: list[int], batch: int, load: str, seed: int = 0) -> Plan:
    """A plan under one of the loads that servers meet: which adapters the rows use."""
    generator = torch.Generator().manual_seed(seed)
    rocs = torch.stack([torch.randint(0, rank + 1, (batch,), generator=generator) for rank in ranks], dim=1)
    users = {
        "identical": torch.zeros(batch, dtype=torch.long),
        "distinct": torch.arange(batch) % len(ranks),
        "uniform": torch.randint(0, len(ranks), (batch,), generator=generator),
        "zipf": (torch.rand(batch, generator=generator) ** 3 * len(ranks)).long(),
    }
    if load != "all":
        rocs = rocs * torch.nn.functional.one_hot(users[load], len(ranks))
    scale = torch.rand(batch, generator=generator) + 0.5
    return Plan(tuple(range(len(ranks))), torch.tensor(ranks), (rocs > 0).float(), rocs, scale)


def by(row: Tensor) -> Spread:
    """Rows by index: any token may be of any row."""
    return lambda of_rows: of_rows[..., row]


def delta(base: Tensor, x: Tensor, site: Site, gate: Gate, plan: Plan, row: Tensor) -> Tensor:
    """base + what the site adds."""
    return base + plain(x, row, plan, gate, site)


def strongest(values: list[float], keep: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda j: (-values[j], j))[:keep])


def hilora_loop(x: Tensor, adapters: list[Factors], plan: Plan, row: Tensor, criterion: str) -> Tensor:
    """HiLoRA section 3.3, one token, one adapter, one ROC at a time."""
    y = torch.zeros(len(x), OUT, dtype=torch.float64)
    for t in range(len(x)):
        for i, factors in enumerate(adapters):
            down, up = (f.double() for f in factors["site"])
            a_x = [float(down[j] @ x[t].double()) for j in range(len(down))]
            strength = {
                "value": a_x,
                "magnitude": [abs(v) for v in a_x],
                "contribution": [abs(v) * float(up[:, j].norm()) for j, v in enumerate(a_x)],
            }[criterion]
            for j in strongest(strength, int(plan.rocs[row[t], i])):
                y[t] += float(plan.scale[row[t]]) * up[:, j] * a_x[j]
    return y


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("load", ["all", "identical", "distinct", "uniform", "zipf"])
def test_delta_equals_the_papers_loop(criterion: str, load: str) -> None:
    ranks = [4, 2, 4, 6, 1]
    adapters, plan = random_adapters(ranks), random_plan(ranks, 6, load)
    x = torch.randn(24, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.arange(24) // 4
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    base = torch.randn(24, OUT, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = delta(base, x, site, TopRocs(criterion), plan, row)
    torch.testing.assert_close(got, base + hilora_loop(x, adapters, plan, row, criterion))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_the_naive_form(dtype: torch.dtype) -> None:
    ranks = [4, 4]
    adapters = random_adapters(ranks, dtype)
    plan = random_plan(ranks, 4, "all")
    plan = Plan(plan.ids, plan.ranks, plan.weights, torch.full((4, 2), 4), torch.ones(4))  # rounding must not choose
    x = torch.randn(32, IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    row = torch.arange(32) // 8
    site = stack_sites(adapters, {"site": (CPU, dtype)})["site"]
    exact = hilora_loop(x, adapters, plan, row, "value")
    fast = delta(torch.zeros(32, OUT, dtype=dtype), x, site, TopRocs(), plan, row)
    naive = sum((x @ f["site"][0].T) @ f["site"][1].T for f in adapters)
    error, naive_error = (fast.double() - exact).abs().max(), (naive.double() - exact).abs().max()
    assert error <= 2 * naive_error


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pool_top_rocs_equal_the_loop_over_all_rocs(criterion: str) -> None:
    ranks, k = [4, 2, 4, 6], 5
    adapters, plan = random_adapters(ranks), random_plan(ranks, 3, "all")
    x = torch.randn(12, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.arange(12) // 4
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    got = delta(torch.zeros(12, OUT, dtype=torch.float64), x, site, PoolTopRocs(k, criterion), plan, row)
    want = torch.zeros(12, OUT, dtype=torch.float64)
    for t in range(12):
        usable = [i for i in range(len(ranks)) if plan.rocs[row[t], i] > 0]
        pairs = [adapters[i]["site"] for i in usable]
        rocs = [(float(d @ x[t]), u) for down, up in pairs for d, u in zip(down, up.T, strict=True)]
        strength = {
            "value": [z for z, _ in rocs],
            "magnitude": [abs(z) for z, _ in rocs],
            "contribution": [abs(z) * float(u.norm()) for z, u in rocs],
        }[criterion]
        for j in strongest(strength, k):
            want[t] += float(plan.scale[row[t]]) * rocs[j][0] * rocs[j][1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("ranks", [[1], [3], [8, 8], [32], [1, 2, 5]])
def test_places_count_within_each_adapter_with_ties_to_the_earlier(ranks: list[int]) -> None:
    generator = torch.Generator().manual_seed(sum(ranks))
    strength = torch.randint(0, 4, (sum(ranks), 20), generator=generator).bfloat16()  # many ties
    owner = torch.arange(len(ranks)).flip(0).repeat_interleave(torch.tensor(ranks))  # in any order
    found, start = places(strength, owner), 0
    for rank in ranks:
        for t in range(20):
            want = [j for _, j in sorted((-v, j) for j, v in enumerate(strength[start : start + rank, t].tolist()))]
            assert [int(found[start + j, t]) for j in want] == list(range(rank))
        start += rank


@pytest.mark.parametrize("rank", [8, 33, 64])
@pytest.mark.parametrize("tokens", [4, 40])
def test_a_token_uses_as_many_rocs_as_its_row_is_given(rank: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    rocs = torch.randint(0, rank + 1, (4, 2), generator=generator)
    adapters = [{"site": (torch.ones(rank, 1), torch.ones(1, rank))} for _ in range(2)]
    site = stack_sites(adapters, {"site": (CPU, torch.bfloat16)})["site"]
    plan = Plan((0, 1), torch.tensor([rank, rank]), (rocs > 0).float(), rocs, torch.ones(4))
    z = torch.randn(2 * rank, tokens, generator=generator).bfloat16() + 9  # all positive; ties are common
    row = torch.arange(tokens) // (tokens // 4)
    used = (TopRocs()(site, plan)(z, by(row)) > 0).unflatten(0, (2, rank)).sum(1)  # (adapter, token)
    assert torch.equal(used, rocs.T[:, row])


def test_a_whole_plan_is_the_same_without_choosing() -> None:
    adapters = random_adapters([4, 2])
    rocs = torch.tensor([[4, 0], [0, 2], [4, 2]])
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    z = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.arange(12) // 4
    outputs = []
    for whole in (True, False):
        plan = Plan((0, 1), torch.tensor([4, 2]), (rocs > 0).float(), rocs, torch.ones(3), whole)
        outputs.append(TopRocs()(site, plan)(z, by(row)))
    assert torch.equal(*outputs)


def test_no_rank_is_padded_to_another() -> None:
    site = stack_sites(random_adapters([8, 1, 8, 2]), {"site": (CPU, torch.float64)})["site"]
    assert site.down.shape == (19, IN)
    assert site.up.shape == (OUT, 19)
    assert [(rank, columns.tolist()) for rank, columns in site.blocks] == [(1, [1]), (2, [3]), (8, [0, 2])]
    assert site.owner.tolist() == [1, 3, 3, *[0] * 8, *[2] * 8]


def test_a_site_of_lower_rank_gets_its_share_of_the_budget() -> None:
    # rank_pattern: the adapter has rank 8 elsewhere and 2 here; 4 of 8 ROCs are 1 of 2
    adapters = random_adapters([2])
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    plan = Plan((0,), torch.tensor([8]), torch.ones(1, 1), torch.tensor([[4]]), torch.ones(1))
    z = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    assert TopRocs()(site, plan)(z, by(torch.zeros(1, dtype=torch.long))).tolist() == [[0.0], [5.0]]


def test_a_full_budget_with_scale_one_is_the_whole_adapter() -> None:
    adapters = random_adapters([4])
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    plan = Plan((0,), torch.tensor([4]), torch.ones(1, 1), torch.tensor([[4]]), torch.ones(1))
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    down, up = adapters[0]["site"]
    row, zeros = torch.zeros(5, dtype=torch.long), torch.zeros(5, OUT, dtype=torch.float64)
    torch.testing.assert_close(delta(zeros, x, site, TopRocs(), plan, row), x @ down.T @ up.T)


def test_signs_change_the_papers_criterion_and_not_magnitude() -> None:
    (down, up), plan = random_adapters([4])[0]["site"], random_plan([4], 1, "all", seed=3)
    plan = Plan((0,), torch.tensor([4]), plan.weights, torch.tensor([[2]]), torch.ones(1))
    x = torch.randn(30, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row, zeros = torch.zeros(30, dtype=torch.long), torch.zeros(30, OUT, dtype=torch.float64)
    sites = [stack_sites([{"site": (s * down, s * up)}], {"site": (CPU, torch.float64)})["site"] for s in (1.0, -1.0)]
    by_value = [delta(zeros, x, site, TopRocs("value"), plan, row) for site in sites]
    by_size = [delta(zeros, x, site, TopRocs("magnitude"), plan, row) for site in sites]
    assert not torch.allclose(*by_value)
    torch.testing.assert_close(*by_size)


def test_unknown_criterion_suggests_the_near_one() -> None:
    for gate in (TopRocs, lambda name: PoolTopRocs(1, name)):
        with pytest.raises(HiloraError, match=r"^Unknown criterion 'magnitud'\. Did you mean 'magnitude'"):
            gate("magnitud")
    with pytest.raises(HiloraError, match="expected at least 1"):
        PoolTopRocs(0)
    assert PoolTopRocs(1).k == 1


def test_sizes_are_the_same_for_all_rows_unless_each_has_rocs_of_its_own() -> None:
    adapters, plan = random_adapters([2, 1]), random_plan([2, 1], 4, "all")
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    assert torch.equal(row_sizes(site, plan), site.size[:, None].expand(3, 4))
    own = torch.rand(3, 4, dtype=torch.float64)
    assert torch.equal(row_sizes(replace(site, size=own), plan), own)


def test_variance_grows_with_the_rocs_and_the_factor_takes_it_back() -> None:
    # Lemma 2: the sum of O independent ROC outputs has variance proportional to O
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4000, 32, generator=generator)  # (draw, roc)
    for count in (1, 4, 16, 32):
        spread = float((math.sqrt(8 / count) * outputs[:, :count].sum(1)).std())
        assert spread == pytest.approx(math.sqrt(8), rel=0.1)


@pytest.mark.parametrize("whole", [False, True])
def test_weighted_rocs_count_by_their_adapters_weight(whole: bool) -> None:
    ranks = [4, 1, 6]
    adapters, plan = random_adapters(ranks), random_plan(ranks, 4, "all")
    weights = torch.rand(4, 3, generator=torch.Generator().manual_seed(5))
    rocs = (plan.rocs > 0) * torch.tensor(ranks) if whole else plan.rocs
    plan = Plan(plan.ids, plan.ranks, weights, rocs, plan.scale, whole)
    x = torch.randn(12, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.arange(12) // 3
    site = stack_sites(adapters, {"site": (CPU, torch.float64)})["site"]
    got = delta(torch.zeros(12, OUT, dtype=torch.float64), x, site, TopRocs(weighted=True), plan, row)
    want = torch.zeros(12, OUT, dtype=torch.float64)
    for i in range(3):
        alone = Plan((0,), plan.ranks[i : i + 1], plan.weights[:, i : i + 1], rocs[:, i : i + 1], plan.scale)
        want += weights[row, i : i + 1].double() * hilora_loop(x, adapters[i : i + 1], alone, row, "value")
    torch.testing.assert_close(got, want)
