"""Laws of what comes ahead: adapters in blocks are the adapters; a card gets them early, and no answer changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hilora import HiLoRA
from hilora.compose.stack import stack_sites
from hilora.engine.ahead import Ahead, ahead_of
from hilora.engine.slots import Slots, write_at_once
from hilora.pool import flat
from hilora.pool.flat import pack, placed
from hilora.pool.memory import Memory, num_bytes
from hilora.types import Factors

CPU, CARD, OTHER = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211"]


def some_factors(dtype: torch.dtype = torch.float32, *, rank: int = 3, seed: int = 0) -> Factors:
    """Of three sites, two of which are alike."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"a.q": (8, 6), "a.v": (8, 4), "b.q": (8, 6)}
    return {
        name: (torch.randn(rank, i, generator=drawn).to(dtype), torch.randn(o, rank, generator=drawn).to(dtype))
        for name, (i, o) in shapes.items()
    }


def same(one: Factors, other: Factors) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) and a.dtype == b.dtype for name in one for a, b in zip(one[name], other[name], strict=True)
    )


# --- in blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_adapter_is_the_adapter(dtype: torch.dtype) -> None:
    factors = some_factors(dtype) | {"c": (torch.ones(2, 5).half(), torch.ones(7, 2).half())}
    places = {"a.q": (CPU, torch.float64), "a.v": (CPU, torch.float64), "b.q": (CPU, dtype), "c": (CPU, dtype)}
    packed = pack(factors, places)
    assert same(packed, factors)
    assert num_bytes(packed) == num_bytes(dict(factors)) == sum(b.data.nbytes for b in packed.blocks)
    assert len(packed.blocks) == 3  # of two dtypes, and for two
    there = packed.moved(placed)
    assert all(there[name][half].dtype == where for name, (_, where) in places.items() for half in (0, 1))
    assert all(torch.equal(there[n][half], factors[n][half].to(there[n][half])) for n in factors for half in (0, 1))
    factors["c"][0].zero_()
    assert packed["c"][0].any()  # in memory of its own


def test_blocks_go_each_to_its_card_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def room(count: int, dtype: torch.dtype, *, locked: bool) -> torch.Tensor:
        asked.append(locked)
        return torch.empty(count, dtype=dtype)  # no memory is page-locked without a driver

    monkeypatch.setattr(flat, "room", room)
    places = {"a.q": (CARD, torch.bfloat16), "a.v": (CPU, torch.bfloat16), "b.q": (OTHER, torch.bfloat16)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        packed = pack(some_factors(), places)
        there = packed.moved(placed)
        assert asked == [True, False, True]
        assert {name: down.device for name, (down, _) in there.items()} == {n: w for n, (w, _) in places.items()}
        assert {half.dtype for both in there.values() for half in both} == {torch.bfloat16}
        site = stack_sites([there, there], places)["b.q"]
        assert (site.up.device, site.size.device, site.owner.device) == (OTHER, OTHER, OTHER)
        slot = site.down.narrow(0, 3, 3), site.up.narrow(1, 3, 3), site.size.narrow(0, 3, 3)
        write_at_once([(*slot, *there["b.q"])])


def test_to_write_at_once_is_to_write_site_by_site(shared_pool: Callable[[str], tuple[Any, Any]]) -> None:
    model, pool = shared_pool("llama")
    places = dict.fromkeys(pool.base.sites, (CPU, torch.float32))
    first, second = (pool.factors(entry.hash) for entry in pool.entries if entry.rank == 4)
    slots = [Slots(model, "fast", False, {"first": first}, {}, places) for _ in range(2)]
    slots[0].fill({"second": second}, set())
    written = []
    for rank, name in slots[1].shapes[0]:
        site = slots[1].form.sites[name]
        written.append((site.down[:rank], site.up[:, :rank], site.size[:rank], *second[name]))
    write_at_once(written)
    for name, site in slots[0].form.sites.items():
        other = slots[1].form.sites[name]
        assert torch.equal(site.down, other.down)
        assert torch.equal(site.up, other.up)
        assert torch.allclose(site.size, other.size)


# --- ahead --------------------------------------------------------------------------------------------


@pytest.fixture
def routers(
    shared_pool: Callable[[str], tuple[Any, Any]], tokenizer: Any, embedder: Any
) -> Callable[..., tuple[HiLoRA, HiLoRA]]:
    """One that works as on a card, and one that does not."""

    def made(**options: Any) -> tuple[HiLoRA, HiLoRA]:
        model, pool = shared_pool("llama")
        ahead, plain = (
            HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=tokenizer, embedder=embedder, **options)
            for _ in range(2)
        )
        bank = ahead.lanes.bank
        assert bank.ahead is None  # on the CPU
        bank.ahead = Ahead(bank.memory, bank.placements)
        return ahead, plain

    return made


@pytest.mark.parametrize("limit", ["512MB", "3kB", "0"])
@pytest.mark.parametrize("beams", [1, 2])
def test_answers_and_counts_are_those_without(limit: str, beams: int, routers: Any) -> None:
    ahead, plain = routers(adapter_memory=limit)
    for _ in range(2):
        for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[::-1]):
            found, want = (r.generate(prompts, max_new_tokens=4, num_beams=beams) for r in (ahead, plain))
            assert found == want
            assert ahead.memory.hits == plain.memory.hits
            assert ahead.memory.used <= ahead.memory.limit
    if limit == "512MB":
        assert (ahead.memory.loads, ahead.memory.used) == (plain.memory.loads, plain.memory.used)


class Files:
    """Adapters that are read; `wait` holds the reader up."""

    entries = ()

    def __init__(self) -> None:
        self.read: list[str] = []
        self.begun = threading.Event()
        self.wait = threading.Event()
        self.wait.set()

    def factors(self, content: str) -> Factors:
        self.read.append(content)
        self.begun.set()
        assert self.wait.wait(60)
        if content == "gone":
            raise OSError(content)
        return some_factors()

    def count(self, route: Any) -> Any:
        return route


PLACES = dict.fromkeys(some_factors(), (CPU, torch.float32))
SIZE = num_bytes(some_factors())


def test_what_is_expected_is_read_before_it_is_needed_and_once() -> None:
    files, ahead = Files(), Ahead(Memory(), PLACES)
    ahead.expect("a", files)
    ahead.expect("a", files)
    ahead.wait()
    assert files.read == ["a"]
    assert same(ahead.factors("a", files), some_factors())
    assert same(ahead.factors("a", files), some_factors())
    assert files.read == ["a"]


def test_who_needs_what_is_not_read_yet_reads_it_himself_and_waits_for_what_is_being_read() -> None:
    files, ahead = Files(), Ahead(Memory(0), PLACES)
    assert same(ahead.factors("a", files), some_factors())  # nothing is kept, nothing read ahead
    ahead.expect("a", files)
    assert not ahead._coming
    ahead = Ahead(Memory(), PLACES)
    files.begun.clear()
    files.wait.clear()
    for content in "bcd":
        ahead.expect(content, files)
    assert files.begun.wait(60)
    threading.Timer(0.05, files.wait.set).start()
    found = [ahead.factors(content, files) for content in "dcb"]
    assert all(same(each, some_factors()) for each in found)
    assert sorted(files.read) == ["a", "b", "c", "d"]


def test_what_has_come_and_is_not_needed_stays_within_the_limit() -> None:
    files, ahead = Files(), Ahead(Memory(2 * SIZE), PLACES)
    for content in "abcd":
        ahead.expect(content, files)
    ahead.wait()
    assert sum(ahead._bytes.values()) == 2 * SIZE == ahead.memory.used
    assert set(ahead._bytes) == set(ahead._coming) == {"c", "d"}
    small = Ahead(Memory(SIZE - 1), PLACES)
    small.expect("a", files)
    small.wait()
    assert (small._bytes, small.memory.used) == ({}, 0)
    assert same(small.factors("a", files), some_factors())


def test_what_cannot_be_read_fails_where_it_is_needed() -> None:
    files, ahead = Files(), Ahead(Memory(), PLACES)
    ahead.expect("gone", files)
    ahead.wait()
    with pytest.raises(OSError, match="gone"):
        ahead.factors("gone", files)
    assert files.read == ["gone", "gone"]


def test_one_memory_has_one_bringer_and_a_model_on_no_card_none() -> None:
    memory, on_card = Memory(), {"a": (CARD, torch.float32)}
    assert ahead_of(memory, PLACES) is None
    first = ahead_of(memory, on_card)
    assert first is not None
    assert ahead_of(memory, on_card) is first
