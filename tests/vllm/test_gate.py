"""Tokens with adapters of their own, in slots of one length, get what the library's equation gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hilora.compose.delta import plain
from hilora.compose.rocs import TopRocs
from hilora.compose.stack import stack_sites
from hilora.gateway.parts import Part
from hilora.types import Factors, Plan
from hilora.vllm.gate import gate
from hilora.vllm.places import Grouped, Places
from hilora.vllm.wire import Composition

RANKS = [4, 7, 1, 5]
HERE = {"one": [4, 3, 1, 5], "two": [2, 7, 0, 5]}
"""Rank of each adapter at each site; 0 where it has none."""
LONGEST, INTO, OUT = 8, 12, 10
CRITERIA = ("value", "magnitude", "contribution")


def adapters() -> list[Factors]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            site: (torch.randn(ranks[i], INTO, generator=draw), torch.randn(OUT, ranks[i], generator=draw))
            for site, ranks in HERE.items()
            if ranks[i]
        }
        for i in range(len(RANKS))
    ]


def stacked(each: list[Factors], slots: list[int], junk: float) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Adapters in slots as vLLM has them, down and up of each site, and size and count; `junk` where none is."""
    downs, ups = [], []
    size, count = torch.zeros(2, 6, LONGEST), torch.zeros(2, 6, dtype=torch.long)
    for number, site in enumerate(HERE):
        down, up = torch.full((6, 1, LONGEST, INTO), junk), torch.full((6, 1, OUT, LONGEST), junk)
        for factors, slot in zip(each, slots, strict=True):
            own = factors.get(site, (torch.zeros(0, INTO), torch.zeros(OUT, 0)))
            rank = len(own[0])
            down[slot], up[slot] = 0, 0
            down[slot, 0, :rank], up[slot, 0, :, :rank] = own
            size[number, slot, :rank], count[number, slot] = own[1].norm(dim=0), rank
        downs.append(down)
        ups.append(up)
    return downs, ups, size, count


def rows_of(plan: Plan, criterion: str, contents: list[str]) -> list[Composition | None]:
    """What each row of a plan uses."""
    found = []
    for row in range(len(plan.scale)):
        parts = tuple(
            Part(contents[i], float(plan.scale[row]), int(plan.rocs[row, i]), RANKS[i])
            for i in range(len(RANKS))
            if plan.rocs[row, i]
        )
        found.append(Composition(parts, criterion) if parts else None)
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_mixed_step_adds_what_the_equation_adds(criterion: str) -> None:
    each, slots, contents = adapters(), [5, 0, 2, 3], ["a", "b", "c", "d"]
    downs, ups, size, count = stacked(each, slots, junk=7.0)
    draw = torch.Generator().manual_seed(2)
    rocs = torch.stack([torch.randint(0, rank + 1, (6,), generator=draw) for rank in RANKS], dim=1)
    rocs[0], rocs[3] = 0, torch.tensor(RANKS)  # the base alone; all of all
    plan = Plan((0, 1, 2, 3), torch.tensor(RANKS), torch.ones(6, 4), rocs, torch.rand(6, generator=draw) + 0.5)
    tokens = [3, 1, 2, 4, 1, 1]
    x = torch.randn(sum(tokens), INTO, generator=draw)
    row = torch.arange(6).repeat_interleave(torch.tensor(tokens))
    places = Places(4, 32)
    work = Grouped(places)
    rows = list(zip(rows_of(plan, criterion, contents), tokens, strict=True))
    work.fill(rows, [], dict(zip(contents, slots, strict=True)))
    num = work.num_places
    z = work.shrink(x, downs)
    mine = (own[:num, : len(x)] for own in (places.slot, places.rocs, places.rank, places.factor))
    gated = gate(z, size, count, *mine, places.criterion[: len(x)])
    y = torch.zeros(len(x), 2 * OUT)
    work.expand(y, gated, ups, (OUT, OUT), 0)
    sites = stack_sites(each, dict.fromkeys(HERE, (torch.device("cpu"), torch.float32)))
    wanted = torch.cat([plain(x, row, plan, TopRocs(criterion), sites[name]) for name in HERE], dim=1)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    assert not y[: tokens[0]].any()
    assert wanted[tokens[0] :].any()


def test_of_equal_rocs_the_earlier_is_the_stronger() -> None:
    z = torch.tensor([[[[1.0, 2.0, 2.0, 2.0]]]])
    one = torch.ones(1, 1, dtype=torch.long)
    given = (
        torch.ones(1, 1, 4),
        4 * one,
        0 * one,
        2 * one,
        4 * one,
        torch.ones(1, 1),
        torch.zeros(1, dtype=torch.long),
    )
    assert gate(z, *given).tolist() == [[[[0.0, 2.0, 2.0, 0.0]]]]


def test_padding_is_no_roc_though_it_is_larger() -> None:
    z = torch.tensor([[[[-1.0, -2.0, 9.0, 9.0]]]])
    one = torch.ones(1, 1, dtype=torch.long)
    given = torch.ones(1, 1, 4), 2 * one, 0 * one, one, 2 * one, torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    assert gate(z, *given).tolist() == [[[[-1.0, 0.0, 0.0, 0.0]]]]


def test_what_lies_in_unused_places_comes_to_nothing_whatever_it_is() -> None:
    z = torch.full((1, 1, 2, 3), torch.nan)
    none, one = torch.full((1, 2), -1), torch.ones(1, 2, dtype=torch.long)
    given = torch.ones(1, 1, 3), torch.full((1, 1), 3), none, one, one, torch.zeros(1, 2), one[0]
    assert not gate(z, *given).any()


def test_torch_accepts_the_operation() -> None:
    one = torch.ones(2, 5, dtype=torch.long)
    given = torch.rand(3, 4, 8), torch.full((3, 4), 6), one, one, 8 * one, torch.rand(2, 5), one[0]
    torch.library.opcheck(gate, (torch.randn(2, 3, 5, 8), *given))


def test_a_step_without_compositions_uses_nothing_of_the_one_before() -> None:
    places = Places(2, 8)
    composition = Composition((Part("a", 1.0, 1, 2),))
    places.fill([(composition, 3), (None, 2)], {"a": 4})
    assert (places.used, places.slot[0, :6].tolist()) == (1, [4, 4, 4, -1, -1, -1])
    assert [(group.place, group.slot, group.tokens.tolist()) for group in places.groups] == [(0, 4, [0, 1, 2])]
    where = places.slot.data_ptr()
    places.fill([(None, 1)], {})
    assert (places.used, places.groups) == (0, [])
    assert (places.slot == -1).all()
    assert places.slot.data_ptr() == where  # a captured graph reads what lies there
