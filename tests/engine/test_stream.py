"""Laws of streams: whoever stops taking stops the model, and nothing stays behind."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hilora import HiLoRA
from hilora.errors import InputError

PROMPT, MOST = "abab baab abba aaa", 150
FREE: dict[str, Any] = {"max_new_tokens": MOST, "eos_token_id": None}
"""Long, and nothing ends it."""


class Steps:
    """Forward passes of a model, counted; something may happen at one of them."""

    def __init__(self, model: Any) -> None:
        self.count, self.at = 0, {}
        self.handle = model.register_forward_pre_hook(self.step)

    def step(self, *_: Any) -> None:
        self.count += 1
        if self.count in self.at:
            self.at[self.count]()


@pytest.fixture(params=["llama", "t5"])
def router(request: Any, shared_pool: Any, joined: Any, embedder: Any) -> HiLoRA:
    model, pool = shared_pool(request.param)
    return HiLoRA.from_pretrained(model, pool, "hilora-gs", tokenizer=joined, embedder=embedder)


@pytest.fixture
def steps(router: HiLoRA) -> Iterator[Steps]:
    counted = Steps(router.model)
    yield counted
    counted.handle.remove()


def streams() -> list[threading.Thread]:
    """The engines' threads that are still there a moment later: they end just after the last answer."""
    found = [thread for thread in threading.enumerate() if thread.name == "hilora engine"]
    for thread in found:
        thread.join(5)
    return [thread for thread in found if thread.is_alive()]


def nothing_is_left(router: HiLoRA) -> bool:
    """No thread, no hook of ours, and the model may be used."""
    hooks = [hook for module in router.model.modules() for hook in module._forward_hooks.values()]
    ours = [hook for hook in hooks if getattr(hook, "__module__", "").startswith("hilora")]
    return not streams() and not ours and len(router.generate("zzy", max_new_tokens=1)) == 1


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Also by what a shell runs in the background, which it lets ignore it: a test would wait for ever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    """Ctrl-C, as the thread that takes the pieces meets it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_a_break_stops_the_model_at_the_next_token(router: HiLoRA, steps: Steps) -> None:
    for number, _ in enumerate(router.stream(PROMPT, **FREE)):
        if number == 1:
            taken = steps.count
            break
    assert steps.count <= taken + 2 < MOST
    assert nothing_is_left(router)


def test_a_stream_that_is_closed_or_forgotten_stops_too(router: HiLoRA, steps: Steps) -> None:
    pieces = router.stream(PROMPT, **FREE)
    next(pieces)
    taken = steps.count
    pieces.close()
    assert steps.count <= taken + 2 < MOST
    assert nothing_is_left(router)
    pieces = router.stream(PROMPT, **FREE)
    next(pieces)
    taken = steps.count
    del pieces
    gc.collect()
    assert steps.count <= taken + 2 < 2 * MOST
    assert nothing_is_left(router)


def test_a_consumer_that_fails_stops_it_too(router: HiLoRA, steps: Steps) -> None:
    def consume() -> None:
        for _ in router.stream(PROMPT, **FREE):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert steps.count < MOST
    assert nothing_is_left(router)


def test_ctrl_c_ends_a_stream_at_the_next_token(router: HiLoRA, steps: Steps) -> None:
    steps.at = {4: interrupt}

    def consume() -> None:
        for _ in router.stream(PROMPT, **FREE):
            pass

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert steps.count < MOST
    assert nothing_is_left(router)


def test_ctrl_c_ends_a_stream_that_waits_for_its_turn(router: HiLoRA, steps: Steps) -> None:
    assert router.batching  # found by some steps
    steps.count, pieces = 0, router.stream(PROMPT, **FREE)
    with router.lanes.engine.alone():
        timer = threading.Timer(0.3, interrupt)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    timer.join()
    assert steps.count == 0
    assert nothing_is_left(router)


def test_ctrl_c_is_heard_whichever_thread_the_system_hands_it_to(
    router: HiLoRA, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the one that steps, in the middle of a step that ends only when it was heard."""
    assert router.batching  # found by some steps
    engine, gave_up, heard = router.lanes.engine, threading.Event(), list[bool]()
    give_up = engine.give_up

    def tell(works: Any) -> Any:
        gave_up.set()
        return give_up(works)

    def hand_over() -> None:
        assert threading.current_thread() is not threading.main_thread()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        heard.append(gave_up.wait(5))

    monkeypatch.setattr(engine, "give_up", tell)
    steps.count, steps.at = 0, {2: hand_over}
    with pytest.raises(KeyboardInterrupt):
        router.generate([PROMPT, "zzy"], **FREE)
    assert heard == [True]
    assert nothing_is_left(router)


def test_ctrl_c_leaves_the_model_as_it_was(router: HiLoRA, steps: Steps) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if router.model.config.is_encoder_decoder else {})
    with torch.no_grad():
        before = router.model(**inputs).logits
    for step in (1, 3):
        steps.count, steps.at = 0, {step: interrupt}
        with pytest.raises(KeyboardInterrupt):
            router.generate([PROMPT, "zzy"], **FREE)
        assert step <= steps.count < MOST
        assert not torch.is_inference_mode_enabled()
    steps.at = {}
    with torch.no_grad():
        assert torch.equal(router.model(**inputs).logits, before)
    assert nothing_is_left(router)


def test_streams_may_be_taken_in_turns(router: HiLoRA) -> None:
    """And others may be answered meanwhile: whoever takes slowly keeps nobody waiting."""
    options = {"max_new_tokens": 8, "eos_token_id": None}
    prompts = [PROMPT, "zzy xyz"]
    want = [answer.text for answer in router.generate(prompts, **options)]
    first, second = (router.stream(prompt, **options) for prompt in prompts)
    pieces = [[next(first)], [next(second)]]
    assert router.generate(prompts[1], **options)[0].text == want[1]
    pieces[1] += second
    pieces[0] += first
    assert ["".join(each) for each in pieces] == want
    assert not streams()


def test_threads_that_ask_and_break_off_leave_nothing(router: HiLoRA) -> None:
    prompts = [PROMPT, "zzy xyz", "1132 3211", "ab"]
    options = {"max_new_tokens": 24, "eos_token_id": None}
    want, failed = router.generate(prompts, **options), list[BaseException]()

    def ask() -> None:
        assert router.generate(prompts, **options) == want

    def break_off() -> None:
        for _ in router.stream(PROMPT, **FREE):
            break

    def fail() -> None:
        def refuse(found: Any) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            router.generate(prompts, on_answers=refuse, batch_size=2, **options)

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=[work]) for work in (ask, break_off, fail) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert not streams()
    loop = router.lanes.engine.loop
    assert not loop.busy
    assert loop.num_bytes == 0
    assert not router.lanes.bank.pins
    assert nothing_is_left(router)


def test_pieces_come_before_the_answer_is_whole(router: HiLoRA, steps: Steps) -> None:
    """The model waits at its tenth token until a piece has been taken."""
    taken = threading.Event()
    steps.at = {10: lambda: taken.wait(60) or pytest.fail("nothing came for nine tokens")}
    for _ in router.stream(PROMPT, max_new_tokens=12, eos_token_id=None):
        taken.set()


@pytest.mark.parametrize("more", [{"num_return_sequences": 2, "do_sample": True}, {"num_beams": 2}], ids=str)
def test_a_stream_of_several_answers_is_refused(router: HiLoRA, more: dict[str, Any], steps: Steps) -> None:
    with pytest.raises(InputError, match=f"A stream gives one answer.*{next(iter(more))} is 2"):
        next(router.stream(PROMPT, **more))
    assert steps.count == 0
    assert not streams()
