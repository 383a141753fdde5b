"""Merging adapters into one, against the formulas of the papers."""

import math

import pytest
import torch
from torch import Tensor

from hilora.errors import InputError
from hilora.merge.average import Average
from hilora.merge.lego import Lego, cluster, reweighted_means
from hilora.types import Factors

IN, OUT = 6, 5


def random_adapters(ranks: list[int], seed: int = 0) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [{site: (random(rank, IN), random(OUT, rank)) for site in ("q", "v")} for rank in ranks]


def test_average_takes_the_mean_of_a_and_of_b_with_zeros_for_what_is_missing() -> None:
    adapters = random_adapters([3, 2])
    del adapters[1]["v"]
    merged = Average()(adapters)
    (a, b), (c, d) = adapters[0]["q"], adapters[1]["q"]
    down, up = merged["q"]
    torch.testing.assert_close(down[:2], (a[:2] + c) / 2)
    torch.testing.assert_close(down[2], a[2] / 2)
    torch.testing.assert_close(up[:, :2], (b[:, :2] + d) / 2)
    torch.testing.assert_close(merged["v"][0], adapters[0]["v"][0] / 2)


def test_halves_are_summed_before_they_are_rounded() -> None:
    stored = [{s: (a.bfloat16(), b.bfloat16()) for s, (a, b) in f.items()} for f in random_adapters([3] * 7)]
    exact = [{s: (a.double(), b.double()) for s, (a, b) in f.items()} for f in stored]
    for site, (down, up) in Average()(stored).items():
        wanted_down, wanted_up = Average()(exact)[site]
        assert down.dtype == up.dtype == torch.float32
        torch.testing.assert_close(down, wanted_down.float(), rtol=0, atol=0)
        torch.testing.assert_close(up, wanted_up.float(), rtol=0, atol=0)


def test_one_adapter_averaged_or_with_few_rocs_is_itself() -> None:
    (adapter,) = random_adapters([4])
    for merge in (Average(), Lego(4), Lego(9)):
        for site, (down, up) in merge([adapter]).items():
            torch.testing.assert_close(up @ down, adapter[site][1] @ adapter[site][0])


def test_lego_is_the_papers_formula_on_its_own_clusters() -> None:
    adapters, k = random_adapters([3, 2, 4, 3]), 5
    merged = Lego(k)(adapters)
    for site in ("q", "v"):
        units = [torch.cat([a, b]) for f in adapters for a, b in zip(f[site][0], f[site][1].T, strict=True)]
        owner = cluster(torch.stack(units), k)
        assert owner.unique().tolist() == list(range(k))
        want = torch.zeros(OUT, IN, dtype=torch.float64)
        for s in range(k):
            members = [unit for unit, o in zip(units, owner.tolist(), strict=True) if o == s]
            centre = sum(members, torch.zeros(IN + OUT, dtype=torch.float64)) / len(members)
            centre = centre * (sum(float(m.norm()) for m in members) / len(members)) / float(centre.norm())
            want += math.sqrt((12 / 4) / k) * torch.outer(centre[IN:], centre[:IN])
        down, up = merged[site]
        assert down.shape == (k, IN)
        torch.testing.assert_close(up @ down, want)


def test_clusters_are_those_of_well_separated_groups() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.eye(4, 8) * 20
    owner = torch.arange(40) % 4
    found = cluster(centres[owner] + torch.randn(40, 8, generator=generator), 4)
    assert len({(a, b) for a, b in zip(owner.tolist(), found.tolist(), strict=True)}) == 4


def test_means_keep_their_members_norm_even_where_members_cancel() -> None:
    units = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, 0.0], [0.0, 1.0]])
    means = reweighted_means(units, torch.tensor([0, 0, 1, 1]))
    assert torch.isfinite(means).all()
    torch.testing.assert_close(means[1], torch.tensor([1.0, 1.0]) / math.sqrt(2))


def test_lego_refuses_no_rocs() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Lego(0)
