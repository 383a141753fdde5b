"""Who is next, and where: bounded, fair, and no answer depends on it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.gateway.backend import Backend
from hilora.gateway.line import COMPOSITIONS, PASSED, Line, Load, Want, pick
from hilora.serve.faults import AwayError, BusyError

TEXTS = ("aaa abab", "xyz zzy", "mno onm", "123 3211")
LOADS = st.builds(Load, st.booleans(), st.integers(0, 20), st.integers(0, 2), st.integers(0, 9))


@given(st.lists(LOADS, max_size=6))
def test_a_request_goes_to_a_free_backend_that_is_not_clearly_busier_than_another(loads: list[Load]) -> None:
    place = pick(loads)
    free = [load for load in loads if load.free]
    assert (place is None) == (not free)
    if place is not None:
        assert loads[place].free
        least = min(load.busy for load in free)
        assert loads[place].busy <= 2 * least + 4
        near = [load for load in free if load.busy <= 2 * least + 4]
        assert loads[place].knows == max(load.knows for load in near)


def test_a_backend_that_knows_the_adapter_is_preferred_until_it_is_clearly_busier() -> None:
    idle, knows = Load(True, 0, 0), Load(True, 4, 1)
    assert pick([idle, knows]) == 1
    assert pick([idle, Load(True, 5, 1)]) == 0
    assert pick([idle, knows, Load(True, 4, 2)]) == 2
    assert pick([Load(True, 1, 0, 5), Load(True, 1, 0, 4)]) == 1
    assert pick([Load(False, 0, 2)]) is None


def stub(running: int = 4) -> Backend:
    """A backend that is not there, but seems to be."""
    made = Backend(0, "http://127.0.0.1:1", None, running)
    made.up, made.checked_for = True, "all"
    return made


async def hold(line: Line, want: Want, log: list[str], until: Any) -> None:
    async with line.place(want):
        log.append(str(want.name))
        await until.wait()


def test_places_are_given_in_the_order_of_coming() -> None:
    async def run() -> list[str]:
        line, log, first = Line([stub(1)], 99), list[str](), asyncio.Event()
        held = asyncio.ensure_future(hold(line, Want("a"), log, first))
        await asyncio.sleep(0)
        done = asyncio.Event()
        done.set()
        others = [asyncio.ensure_future(hold(line, Want(name), log, done)) for name in ("b", "c", None, "d")]
        await asyncio.sleep(0)
        assert len(line) == 4
        others[1].cancel()  # who leaves holds nobody up
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(held, *others, return_exceptions=True)
        assert line.backends[0].inside == 0
        assert not line.backends[0].live
        return log

    assert asyncio.run(run()) == ["a", "b", "None", "d"]


def test_whoever_waits_for_his_adapters_turn_is_overtaken_only_so_often() -> None:
    async def run() -> list[str]:
        backend = stub(99)
        line, log, done = Line([backend], 999, compositions=1), list[str](), asyncio.Event()
        done.set()
        held = asyncio.Event()
        first = asyncio.ensure_future(hold(line, Want("a"), log, held))
        await asyncio.sleep(0)
        waits = asyncio.ensure_future(hold(line, Want("b"), log, done))
        others = [asyncio.ensure_future(hold(line, Want("a"), log, done)) for _ in range(PASSED + 9)]
        for _ in range(9):
            await asyncio.sleep(0)
        assert len(line) == 1 + 9  # the others are behind him now
        held.set()
        await asyncio.gather(first, waits, *others)
        return log

    assert asyncio.run(run()) == ["a"] * (1 + PASSED) + ["b"] + ["a"] * 9


def test_a_line_without_room_refuses_and_one_without_backends_too() -> None:
    async def run() -> None:
        backend = stub(1)
        line, log, held = Line([backend], 1), list[str](), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(line, Want(None), log, held)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 requests wait already"):
            await hold(line, Want(None), log, held)
        backend.can_load = False
        with pytest.raises(AwayError, match="No backend can use the adapters"):
            await hold(line, Want("x"), log, held)
        backend.up = False
        with pytest.raises(AwayError, match="No vLLM answers"):
            await hold(line, Want(None), log, held)
        held.set()
        backend.up = True
        line.look()
        await asyncio.gather(*tasks)

    asyncio.run(run())


@pytest.mark.parametrize(("given", "told", "most"), [(2, 8, 2), (None, 3, 3), (None, 0, COMPOSITIONS)])
def test_a_backend_has_requests_for_so_many_adapters_at_once(
    opened: Any, fakes: Any, given: int | None, told: int, most: int
) -> None:
    fake = fakes(pause=0.03, max_lora=told)
    gateway = opened(fake, method="mixture", options={"k": 2}, methods=["selection"], compositions=given)
    names = [f"{text} {number}" for number in range(8) for text in TEXTS]

    def ask(number: int) -> str:
        return str(gateway.says(names[number], hilora={"method": ("selection", "mixture")[number % 2]}))

    with ThreadPoolExecutor(32) as threads:
        said = list(threads.map(ask, range(32)))
    assert fake.seen.adapters <= most
    assert most > 3 or gateway.number("held_total") > 0
    alone = [ask(number) for number in range(32)]  # no answer depends on load
    assert alone == said


def test_requests_beyond_those_that_may_wait_are_refused_for_now(opened: Any, fakes: Any) -> None:
    fake = fakes(hold=threading.Event())
    gateway = opened(fake, limits={"running": 2, "waiting": 3})
    with ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(gateway.ask, f"{n}", model="base") for n in range(9)]
        gateway.wait(lambda: sum(each.done() for each in asked) == 4)
        assert fake.seen.together == 2
        fake.knobs.hold.set()
        found = [each.result() for each in asked]
    refused = [each for each in found if each.status_code == 429]
    assert len(refused) == 4
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    assert {each.status_code for each in found} == {200, 429}
    assert fake.seen.together == 2


def test_an_answer_does_not_depend_on_load(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(pause=0.005), fakes(pause=0.01), method="mixture", options={"k": 2})
    texts = [f"{text} {n}" for n in range(6) for text in TEXTS]
    alone = [gateway.says(text) for text in texts]
    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(gateway.says, texts)) == alone


def test_requests_are_spread_over_backends(opened: Any, fakes: Any) -> None:
    first, second = fakes(pause=0.1), fakes(pause=0.1)
    gateway = opened(first, second)
    with ThreadPoolExecutor(24) as threads:
        list(threads.map(gateway.says, ["aaa abab"] * 24))
    assert min(len(first.seen.bodies), len(second.seen.bodies)) >= 6
