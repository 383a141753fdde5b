"""The strongest ROCs found by comparisons are those that sorting finds."""

import pytest
import torch
from torch import Tensor

from hilora.compose.rocs import CRITERIA, TopRocs, places
from hilora.compose.stack import stack_sites
from hilora.engine.ranked import CHUNK, SORT_ABOVE, PairedTopRocs, by_pairs, by_sorting, chunks, faster
from hilora.types import Factors, Plan, Site

CPU = torch.device("cpu")


def random_site(ranks: list[int], dtype: torch.dtype = torch.float64) -> Site:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    adapters: list[Factors] = [{"site": (random(rank, 12), random(10, rank))} for rank in ranks]
    return stack_sites(adapters, {"site": (CPU, dtype)})["site"]


def random_plan(ranks: list[int], batch: int) -> Plan:
    generator = torch.Generator().manual_seed(1)
    rocs = torch.stack([torch.randint(0, rank + 1, (batch,), generator=generator) for rank in ranks], dim=1)
    weights = torch.rand(batch, len(ranks), generator=generator)
    return Plan(tuple(range(len(ranks))), torch.tensor(ranks), weights, rocs, torch.rand(batch, generator=generator))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_comparing_keeps_what_sorting_keeps(criterion: str, weighted: bool, dtype: torch.dtype) -> None:
    ranks = [4, 2, 40, 4, 6, 1]
    site, plan = random_site(ranks, dtype), random_plan(ranks, 4)
    z = torch.randn(sum(ranks), 12, generator=torch.Generator().manual_seed(2)).to(dtype)
    row = torch.arange(12) // 3
    plainly = TopRocs(criterion, weighted)
    fast = faster(plainly, torch.device("cpu"))
    assert isinstance(fast, PairedTopRocs)
    outputs = [gate(site, plan)(z, lambda of_rows: of_rows[..., row]) for gate in (plainly, fast)]  # type: ignore[arg-type,return-value]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("ranks", [[1], [3], [8, 8], [SORT_ABOVE], [1, 2, 5]])
def test_sorting_and_comparing_pairs_place_rocs_alike_with_ties_to_the_earlier(ranks: list[int]) -> None:
    generator = torch.Generator().manual_seed(sum(ranks))
    strength = torch.randint(0, 4, (sum(ranks), 20), generator=generator).bfloat16()  # many ties
    paired, start = by_pairs(ranks, strength)(strength), 0
    for rank in ranks:
        part = strength[start : start + rank]
        assert torch.equal(paired[start : start + rank], by_sorting(part))
        assert torch.equal(paired[start : start + rank].long(), places(part, torch.zeros(rank, dtype=torch.long)))
        for t in range(20):
            want = [j for _, j in sorted((-value, j) for j, value in enumerate(part[:, t].tolist()))]
            assert [int(paired[start + j, t]) for j in want] == list(range(rank))
        start += rank


def test_chunks_keep_the_order_and_bound_the_matrix() -> None:
    ranks = [4, 8, 8, 64, 16, 16, 16, 40, 2] + [8] * 40
    runs = chunks(ranks)
    assert [rank for run in runs for rank in run] == ranks
    for run in runs:
        assert len(run) == 1 or (max(run) <= SORT_ABOVE and sum(run) * sum(r * (r - 1) // 2 for r in run) <= CHUNK)


def test_adapters_are_compared_together_or_apart_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in ([4, 2, 40, 4, 6], [4, 2, 6]):
        site, plan = random_site(ranks), random_plan(ranks, 3)
        z = torch.randn(sum(ranks), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        outputs = []
        for limit in (0, 10**6):
            monkeypatch.setattr("hilora.engine.ranked.CHUNK", limit)
            outputs.append(PairedTopRocs()(site, plan)(z, lambda of_rows: of_rows[..., torch.arange(12) // 4]))
        assert torch.equal(*outputs)
