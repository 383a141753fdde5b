"""Laws of looks at answers: they say what the library says, in turns with answers; traffic is a tenant's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hilora import HiLoRA
from hilora.analyse.activation import record
from hilora.errors import InputError
from hilora.serve import traffic
from hilora.serve.asked import Ask, Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.faults import ServiceError
from hilora.serve.limits import Limits
from hilora.serve.traffic import Traffic

PROMPT = "abab baab abba"
METHODS = ("hilora", "hilora-gs", "selection", "mixture", "fusion")
FREE = {"eos_token_id": None, "do_sample": False}


@pytest.fixture
def router(shared_pool: Any, joined: Any, embedder: Any) -> HiLoRA:
    model, pool = shared_pool("llama")
    return HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=joined, embedder=embedder)


@pytest.fixture
def desk(router: HiLoRA) -> Iterator[PoolDesk]:
    made = PoolDesk(router, Limits(looked=60))
    yield made
    made.close(0.0)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def text(desk: PoolDesk, ask: Ask) -> str:
    (done,) = [event async for event in await desk.answer(ask)]
    return str(done.text)


@pytest.mark.parametrize("method", METHODS)
def test_a_look_says_what_the_library_says(router: HiLoRA, desk: PoolDesk, method: str) -> None:
    own = HiLoRA.from_pretrained(
        router.model, router.planner.pool, method, tokenizer=router.tokenizer, embedder=router.planner.embedder
    )
    want = record(own, PROMPT, seed=4, max_new_tokens=7)
    why, seen = run(desk.look(Ask(PROMPT, method=method, seed=4, answer=want.answer)))
    assert seen.num_prompt == want.num_prompt
    assert "".join(seen.tokens) == "".join(want.tokens)
    assert sorted(seen.adapters) == sorted(want.names)
    assert seen.adapters == tuple(choice.name for choice in why.choices)
    columns = [want.names.index(name) for name in seen.adapters]
    numbers = want.numbers(list(want.used))
    for mine, told in ((seen.rocs_used, numbers["rocs_used"]), (seen.share_added, numbers["share_added"])):
        assert len(mine) == len(told)
        for row, expected in zip(mine, told, strict=True):
            assert row == pytest.approx([expected[column] for column in columns], abs=2e-4)


def test_looks_and_answers_take_turns(desk: PoolDesk) -> None:
    asks = [Ask(f"{PROMPT} {'ab' * n}", max_new_tokens=9, seed=n, sampling=FREE) for n in range(6)]
    alone = [run(text(desk, ask)) for ask in asks]

    async def all_at_once() -> list[Any]:
        looks = [desk.look(replace(ask, answer=said)) for ask, said in zip(asks, alone, strict=True)]
        return await asyncio.gather(*(text(desk, ask) for ask in asks), *looks)

    found = run(all_at_once())
    assert found[:6] == alone
    seen = [run(desk.look(replace(ask, answer=said))) for ask, said in zip(asks, alone, strict=True)]
    assert found[6:] == seen
    assert (desk.waiting, desk.running) == (0, 0)


def test_what_cannot_be_looked_at_is_refused_and_nothing_waits(desk: PoolDesk) -> None:
    with pytest.raises(ServiceError, match="14 and 47 tokens; at most 60"):
        run(desk.look(Ask(PROMPT, answer="a" * 47)))
    assert run(desk.look(Ask(PROMPT, answer="a" * 46)))[1].num_prompt == 14
    with pytest.raises(InputError, match="no adapter is allowed"):
        run(desk.look(Ask(PROMPT, answer="a", allow=[])))

    async def leaves() -> None:
        looking = asyncio.ensure_future(desk.look(Ask(PROMPT, answer="a")))
        await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking])

    run(leaves())
    assert run(text(desk, Ask(PROMPT, max_new_tokens=2, sampling=FREE)))
    assert (desk.waiting, desk.running) == (0, 0)


def test_a_base_with_an_encoder_has_no_looks(shared_pool: Any, joined: Any, embedder: Any) -> None:
    model, pool = shared_pool("t5")
    desk = PoolDesk(HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=joined, embedder=embedder), Limits())
    with pytest.raises(InputError, match="encoder"):
        run(desk.look(Ask(PROMPT, answer="a")))
    desk.close(0.0)


def test_traffic_counts_answers_and_tells_each_tenant_of_its_own(desk: PoolDesk) -> None:
    admin = Caller("", frozenset({"use", "admin"}))
    one, two = (Caller(name, frozenset({"use"})) for name in ("one", "two"))
    for caller, model in ((one, "alpha"), (one, "alpha"), (two, "alpha"), (two, "beta"), (one, "base")):
        run(text(desk, Ask(PROMPT, caller=caller, model=model, max_new_tokens=1)))
    run(desk.route(Ask(PROMPT, caller=one, model="alpha")))
    run(desk.look(Ask(PROMPT, caller=one, model="alpha", answer="a")))
    told = {caller: desk.traffic.of(caller, desk.visible(caller)) for caller in (admin, one, two)}
    assert told[one] == {"alpha": 2, "": 1}
    assert told[two] == {"alpha": 1, "beta": 1}
    assert told[admin] == {"alpha": 3, "": 1, "beta": 1}
    assert next(iter(told[admin])) == "alpha"
    assert desk.traffic.of(admin, desk.visible(admin)[1:]).keys() == {"", "beta"}


def test_traffic_is_bounded_and_keeps_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MOST", 8)
    counted = Traffic()
    for number in range(50):
        counted.count(Caller("t"), ["often", f"h{number}"])
    assert len(counted._counts) <= 8
    assert counted._counts["t", "often"] == 50
