"""Laws of the desk: it answers as the library does, any number of callers, whoever leaves and whatever fails."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from hilora import HiLoRA
from hilora.errors import InputError
from hilora.serve.asked import Ask, Caller, Done, Piece
from hilora.serve.desk import PoolDesk
from hilora.serve.faults import BusyError, ClosingError, LateError, ServiceError
from hilora.serve.limits import Limits
from hilora.serve.ticket import Outbox, Ticket

PROMPT = "abab baab abba"
FREE = {"eos_token_id": None}


@pytest.fixture(params=["llama", "t5"])
def router(request: Any, shared_pool: Any, joined: Any, embedder: Any) -> HiLoRA:
    model, pool = shared_pool(request.param)
    return HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=joined, embedder=embedder)


@pytest.fixture
def desk(router: HiLoRA) -> Iterator[PoolDesk]:
    made = PoolDesk(router, Limits())
    yield made
    made.close(0.0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hilora desk")]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def said(desk: PoolDesk, ask: Ask) -> list[Any]:
    """All that comes."""
    return [event async for event in await desk.answer(ask)]


def ends(events: list[Any]) -> list[Done]:
    return sorted((event for event in events if isinstance(event, Done)), key=lambda done: done.answer)


def texts(events: list[Any], answer: int = 0) -> str:
    """What the pieces of an answer make together."""
    return "".join(event.text for event in events if isinstance(event, Piece) and event.answer == answer)


@pytest.mark.parametrize("follow", [False, True])
def test_a_desk_says_what_the_library_says(router: HiLoRA, desk: PoolDesk, follow: bool) -> None:
    for method in ("hilora", "selection", "mixture", "fusion"):
        own = (
            router
            if method == "hilora"
            else HiLoRA.from_pretrained(
                router.model,
                router.planner.pool,
                method,
                tokenizer=router.tokenizer,
                embedder=router.planner.embedder,
            )
        )
        for options in ({}, {"do_sample": True, "temperature": 1.3}):
            (want,) = own.generate(PROMPT, max_new_tokens=9, seed=4, **options, **FREE)
            ask = Ask(PROMPT, method=method, max_new_tokens=9, seed=4, sampling=options | FREE, follow=follow)
            events = run(said(desk, ask))
            (done,) = ends(events)
            assert (done.text, done.finish_reason, done.completion_tokens) == (want.text, want.finish_reason, 9)
            assert texts(events) == (want.text if follow else "")
            assert run(desk.route(ask)).choices == want.choices


def test_answers_of_one_prompt_are_draws_of_their_own_and_greedy_ones_are_alike(
    router: HiLoRA, desk: PoolDesk
) -> None:
    drawn = {"do_sample": True, "temperature": 2.0}
    want = router.generate(PROMPT, max_new_tokens=6, seed=1, num_return_sequences=3, **drawn, **FREE)
    ask = Ask(PROMPT, max_new_tokens=6, seed=1, answers=3, sampling=drawn | FREE)
    assert [done.text for done in ends(run(said(desk, ask)))] == [each.text for each in want]
    greedy = run(said(desk, replace(ask, sampling=FREE, follow=True)))
    assert len({done.text for done in ends(greedy)}) == 1
    assert len(ends(greedy)) == 3
    assert [texts(greedy, answer) for answer in range(3)] == [done.text for done in ends(greedy)]


def test_log_probabilities_are_those_of_the_models_own_logits(router: HiLoRA, desk: PoolDesk) -> None:
    ask = Ask(PROMPT, model="base", max_new_tokens=5, top_logprobs=3, sampling=FREE, follow=True)
    events = run(said(desk, ask))
    (done,) = ends(events)
    assert len(done.logs) == 5
    for log in done.logs:
        assert log.logprob == log.top[0][1]  # greedy
        assert [value for _, value, _ in log.top] == sorted((value for _, value, _ in log.top), reverse=True)
        assert log.data.decode() == log.token
    if not router.model.config.is_encoder_decoder:
        ids = torch.tensor([router.tokenizer(PROMPT)["input_ids"]])
        with torch.no_grad():
            logits = router.model(ids).logits[0, -1].float()
        assert done.logs[0].logprob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-5)
    drawn = replace(ask, seed=3, sampling={"do_sample": True, "temperature": 3.0} | FREE)
    (warm,) = ends(run(said(desk, drawn)))
    assert any(log.logprob < log.top[0][1] for log in warm.logs)


def test_many_callers_at_once_get_what_each_gets_alone(router: HiLoRA, desk: PoolDesk) -> None:
    asks = [
        Ask(f"{PROMPT} {'ab' * n}", model="base" if n % 3 == 0 else "auto", max_new_tokens=3 + n % 5, sampling=FREE)
        for n in range(20)
    ]

    async def together() -> list[list[Any]]:
        return await asyncio.gather(*[said(desk, ask) for ask in asks])

    for ask, events in zip(asks, run(together()), strict=True):
        assert ends(events) == ends(run(said(desk, ask)))
    with router.lanes.engine.alone():
        pass
    assert not router.lanes.bank.pins
    assert router.lanes.engine.loop.num_bytes == 0


def test_pinned_adapters_are_reached_by_name_and_by_hash(router: HiLoRA, desk: PoolDesk) -> None:
    for entry in router.planner.pool.entries:
        for name in (entry.name, entry.hash):
            why = run(desk.route(Ask(PROMPT, model=name)))
            assert [choice.name for choice in why.choices] == [entry.name]
            assert why.hashes == (entry.hash,)
    with pytest.raises(ServiceError, match="no model"):
        run(desk.route(Ask(PROMPT, model="nothing")))
    only = router.planner.pool.names[0]
    assert {c.name for c in run(desk.route(Ask(PROMPT, allow=[only]))).choices} <= {only}


def test_what_is_wrong_with_one_prompt_is_its_own_affair(desk: PoolDesk) -> None:
    wrong = [
        (Ask("  ", max_new_tokens=2), InputError),
        (Ask(PROMPT, method="arrow"), ServiceError),
        (Ask(PROMPT, options={"nonsense": 1}), InputError),
        (Ask(PROMPT, sampling={"temperature": -1.0, "do_sample": True}), InputError),
    ]

    async def together() -> list[Any]:
        good = [said(desk, Ask(PROMPT, max_new_tokens=3, sampling=FREE)) for _ in wrong]
        bad = [said(desk, ask) for ask, _ in wrong]
        return await asyncio.gather(*good, *bad, return_exceptions=True)

    found = run(together())
    assert all(ends(events)[0].completion_tokens == 3 for events in found[: len(wrong)])
    for error, (_, kind) in zip(found[len(wrong) :], wrong, strict=True):
        assert isinstance(error, kind)


def test_who_leaves_stops_the_model_and_leaves_nothing(router: HiLoRA, desk: PoolDesk) -> None:
    long = Ask(PROMPT, max_new_tokens=150, sampling=FREE, follow=True)

    async def leave() -> int:
        ticket, count = await desk.answer(long), 0
        async for _ in ticket:
            count += 1
            if count == 2:
                break
        await ticket.close()
        return count

    assert run(leave()) == 2
    until(lambda: desk.running == 0 and not router.lanes.engine.loop.busy)
    with router.lanes.engine.alone():
        pass
    assert not router.lanes.bank.pins
    assert len(ends(run(said(desk, replace(long, max_new_tokens=3))))) == 1


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that soon holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_line_refuses_and_says_when_to_come_again(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits(waiting=2, running=1))
    desk.width = 1
    long = Ask(PROMPT, max_new_tokens=100, sampling=FREE)

    async def crowd() -> list[Any]:
        return await asyncio.gather(*[said(desk, long) for _ in range(8)], return_exceptions=True)

    found = run(crowd())
    refused = [error for error in found if isinstance(error, BusyError)]
    assert refused
    assert all(error.after >= 1 for error in refused)
    assert all(ends(events) for events in found if not isinstance(events, BaseException))
    assert len(found) - len(refused) >= 2
    desk.close(0.0)


def test_who_asks_for_much_keeps_no_other_tenant_out(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits(waiting=4, running=1))
    desk.width = 1
    greedy, other = Caller("greedy"), Caller("other")

    def ask(caller: Caller) -> Ask:
        return Ask(PROMPT, max_new_tokens=100, sampling=FREE, caller=caller)

    async def crowd() -> list[Any]:
        asked = [said(desk, ask(caller)) for caller in [greedy] * 8 + [other] * 3]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(crowd())
    served = [not isinstance(each, BaseException) for each in found]
    assert served == [True] * 5 + [False] * 3 + [True] * 2 + [False]  # its share is two of four places
    assert all(isinstance(each, BusyError) for each, was in zip(found, served, strict=True) if not was)
    desk.close(0.0)


def test_who_is_refused_is_told_when_those_who_wait_will_have_started(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits(waiting=8, running=2))
    desk.width = 2
    for _ in range(3):
        desk.meters.worked(6.0)
        desk.meters.answered(0.0, None, 1, "stop")  # how long it took with its time in the line counts for nothing

    async def crowd() -> list[Any]:
        asked = [said(desk, Ask(PROMPT, max_new_tokens=50, sampling=FREE)) for _ in range(11)]
        return await asyncio.gather(*asked, return_exceptions=True)

    (refused,) = (each for each in run(crowd()) if isinstance(each, BaseException))
    assert isinstance(refused, BusyError)
    assert refused.after == 6.0 * 10 / 2
    desk.close(0.0)


def test_without_places_to_wait_who_can_start_at_once_is_served(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits(waiting=0, running=1))
    desk.width = 1
    for _ in range(2):
        assert ends(run(said(desk, Ask(PROMPT, max_new_tokens=3, sampling=FREE))))
        until(lambda: desk.running == 0)
    desk.close(0.0)


def test_what_becomes_of_a_prompt_after_its_client_has_left_troubles_nobody() -> None:
    troubles: list[Any] = []

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
        ticket = Ticket(Ask(PROMPT), Outbox(loop), 60.0, lambda _: None)
        waiting = asyncio.create_task(ticket.wait_routed())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        ticket.tell(ServiceError("There is no such model."))
        await asyncio.sleep(0)

    run(leave())
    gc.collect()
    assert troubles == []


def test_a_deadline_ends_what_takes_too_long(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits(deadline=0.3))
    hook = router.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    with pytest.raises(LateError):
        run(said(desk, Ask(PROMPT, max_new_tokens=150, sampling=FREE)))
    hook.remove()
    until(lambda: desk.running == 0)
    desk.close(0.0)


def test_a_desk_that_closes_lets_what_runs_end_and_takes_nothing_new(router: HiLoRA) -> None:
    desk = PoolDesk(router, Limits())

    async def last() -> list[Any]:
        ticket = await desk.answer(Ask(PROMPT, max_new_tokens=20, sampling=FREE))
        closing = asyncio.create_task(asyncio.to_thread(desk.close, 30.0))
        await asyncio.sleep(0)
        events = [event async for event in ticket]
        await closing
        with pytest.raises(ClosingError):
            await desk.answer(Ask(PROMPT))
        return events

    assert ends(run(last()))[0].completion_tokens == 20


def test_a_failing_step_fails_those_that_share_it_and_the_desk_goes_on(router: HiLoRA, desk: PoolDesk) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = router.model.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        run(said(desk, Ask(PROMPT, max_new_tokens=3)))
    hook.remove()
    assert ends(run(said(desk, Ask(PROMPT, max_new_tokens=3, sampling=FREE))))


def test_adapters_at_work_are_told_as_vllm_tells_them(router: HiLoRA, desk: PoolDesk) -> None:
    async def page() -> str:
        ticket = await desk.answer(Ask(PROMPT, model="alpha", max_new_tokens=60, sampling=FREE, follow=True))
        async for _ in ticket:
            return desk.meters.page()[0].decode()
        raise AssertionError

    assert 'vllm:lora_requests_info{max_lora="32",running_lora_adapters="alpha",waiting_lora_adapters=""}' in run(
        page()
    )
    until(lambda: desk.running == 0)
    assert 'running_lora_adapters=""' in desk.meters.page()[0].decode()


def test_nobody_keeps_all_others_waiting_by_ever_new_options(desk: PoolDesk) -> None:
    for number in range(8):
        run(desk.route(Ask(PROMPT, options={"gamma": 0.1 + number / 100})))
    with pytest.raises(BusyError, match="options"):
        run(desk.route(Ask(PROMPT, options={"gamma": 0.9})))
    run(desk.route(Ask(PROMPT, options={"gamma": 0.1 + 7 / 100})))
    run(desk.route(Ask(PROMPT)))


def test_a_method_that_routes_by_the_base_model_is_served_by_the_one_that_is_there(
    shared_pool: Any, joined: Any, embedder: Any
) -> None:
    """As the default, and as another method that a request names."""
    model, pool = shared_pool("llama")
    given: dict[str, Any] = {"tokenizer": joined, "embedder": embedder}
    want = HiLoRA.from_pretrained(model, pool, "logo", **given).generate(PROMPT, max_new_tokens=5, **FREE)[0]
    for default in ("logo", "hilora"):
        desk = PoolDesk(HiLoRA.from_pretrained(model, pool, default, **given), Limits(), methods=("hilora", "logo"))
        try:
            ask = Ask(PROMPT, method="logo", max_new_tokens=5, sampling=FREE, follow=True)
            assert texts(run(said(desk, ask))) == want.text
            assert [each.name for each in run(desk.route(ask)).choices] == want.adapters
        finally:
            desk.close(0.0)
