"""Laws of the engine: whoever comes and goes, a request answers as it does alone, ends once, and leaves nothing."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch.multiprocessing.reductions import StorageWeakRef

from hilora import HiLoRA
from hilora.engine import loop as loop_module
from hilora.engine import rectangle
from hilora.engine.asked import can_join
from hilora.engine.batch import refusal
from hilora.engine.job import Job, Shared
from hilora.engine.kernels.gumbel import gumbel
from hilora.engine.lanes import bytes_of
from hilora.engine.loop import Loop
from hilora.engine.pick import Pick, draw_key
from hilora.engine.rectangle import Rectangle
from hilora.engine.request import Request
from hilora.engine.sampling import warpers_of
from hilora.engine.thread import Engine, drive
from hilora.errors import InputError

VOCAB = 61
WIDE = {
    **{"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None},
}
KINDS = {
    "llama": lambda: tf.LlamaConfig(**WIDE),
    "sliding": lambda: tf.MistralConfig(**WIDE, sliding_window=5),
    "mixed": lambda: tf.Gemma3TextConfig(
        **WIDE, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(KINDS[kind]()).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def learned_positions(count: int) -> Any:
    """A model that knows so many positions, and fails at any other."""
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    torch.manual_seed(0)
    config = tf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=count, **ends)
    return tf.AutoModelForCausalLM.from_config(config).double().eval()


MODELS = {kind: model_of(kind) for kind in KINDS}


@dataclass(eq=False)
class Words:
    """Reads an answer that one token ends."""

    end: int | None = None
    ended: bool = False
    read: list[int] = field(default_factory=list)

    def feed(self, token: int) -> None:
        self.read.append(token)
        self.ended = token == self.end


class Shifted:
    """Serves rows whose `plan` is a number: it is added to what the first layer reads. 0 is the base model."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.open = model, 0, 0

    @contextmanager
    def __call__(self, requests: Sequence[Request]) -> Iterator[None]:
        plans = torch.tensor([float(request.plan or 0) for request in requests], dtype=torch.float64)
        if not plans.any():
            yield
            return
        self.open += 1

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            self.calls += 1
            return output + plans[:, None, None]

        handle = self.model.get_input_embeddings().register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self.open -= 1

    def begin(self, request: Request) -> None:
        pass

    def end(self, request: Request) -> None:
        pass

    def close(self) -> None:
        pass

    fixed = None


def asked(
    serve: Any, ids: Sequence[int], most: int, *, end: int | None = None, plan: int = 0, seed: int | None = None
) -> Request:
    pick = Pick() if seed is None else Pick(warp=warpers_of({"temperature": 1.5}), key=draw_key(seed, str(ids), 0))
    return Request(list(ids), most, Words(end), pick, serve, plan)


def alone(model: Any, request: Request) -> list[int]:
    """What a request says by itself: no cache, no padding, no others."""
    twin = asked(request.serve, request.ids, request.most, end=request.says.end, plan=request.plan)
    twin.pick, new = request.pick, []
    with torch.inference_mode():
        while len(new) < request.most and (not new or new[-1] != request.says.end):
            with request.serve([twin]):
                logits = model(input_ids=torch.tensor([[*request.ids, *new]]), use_cache=False).logits[0, -1]
            twin.new = new
            token = int(logits.argmax()) if request.pick.is_plain(len(new)) else request.pick(twin, logits)
            new = [*new, token]
    return new


class Buffers:
    """Bytes of all buffers that exist, whoever holds them: seen as each is made, where there are most of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[StorageWeakRef, int]] = []
        self.most, make = 0, rectangle._zeros

        def zeros(*args: Any) -> torch.Tensor:
            new = make(*args)
            self.made.append((StorageWeakRef(new.untyped_storage()), new.untyped_storage().nbytes()))
            self.most = max(self.most, self.num_bytes)
            return new

        patch.setattr("hilora.engine.rectangle._zeros", zeros)

    @property
    def num_bytes(self) -> int:
        self.made = [(storage, size) for storage, size in self.made if not storage.expired()]
        return sum(size for _, size in self.made)


def slices(request: Request) -> int:
    return -(-len(request.ids) // loop_module.SLICE)


class Comings(RuleBasedStateMachine):
    """Requests that come, are cancelled, and step, in any order."""

    kind = "llama"

    def __init__(self) -> None:
        super().__init__()
        self.model = MODELS[self.kind]
        self.serves = [Shifted(self.model), Shifted(self.model)]
        self.loop = Loop(self.model, 0)
        self.steps = 0
        self.loop.per_token = bytes_of(asked(self.serves[0], [5], 1), self.loop)
        self.asked: list[Request] = []
        self.due: dict[Request, int] = {}  # the step in which each starts at the latest
        self.patch = pytest.MonkeyPatch()
        self.buffers = Buffers(self.patch)

    @initialize(
        tokens=st.sampled_from([125, 180, 400, 2000]),  # the largest request takes 124
        room=st.sampled_from([1, 4, 64]),
        piece=st.sampled_from([8, 50, 2048]),
        share=st.sampled_from([1, 3, 8]),
        wide=st.sampled_from([1, 100]),
        rows=st.sampled_from([5, 12]),
    )
    def begin(self, tokens: int, room: int, piece: int, share: int, wide: int, rows: int) -> None:
        self.loop.most = rows
        self.loop.memory = tokens * self.loop.per_token
        self.patch.setattr("hilora.engine.rectangle.ROOM", room)
        self.patch.setattr("hilora.engine.loop.SLICE", piece)
        self.patch.setattr("hilora.engine.loop.SHARE", share)
        self.patch.setattr("hilora.engine.batch.SMALL", wide)

    @rule(
        length=st.sampled_from([1, 2, 5, 9, 17, 40]),
        first=st.integers(2, 50),
        most=st.sampled_from([1, 2, 7, 20]),
        end=st.none() | st.integers(2, VOCAB - 1),
        plan=st.sampled_from([0, 0, 1, 2]),
        seed=st.none() | st.integers(0, 3),
        whose=st.integers(0, 1),
    )
    def come(
        self, length: int, first: int, most: int, end: int | None, plan: int, seed: int | None, whose: int
    ) -> None:
        ids = [2 + (first + 7 * i * i) % (VOCAB - 2) for i in range(length)]
        request = asked(self.serves[whose], ids, most, end=end, plan=plan, seed=seed)
        self.due[request] = self.steps + sum(slices(r) + r.most for r in self.asked if not r.ended)
        self.asked.append(request)
        self.loop.waiting.append(request)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        self.asked[which % len(self.asked)].cancelled = True

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                self.loop.step()
                self.steps += 1

    @invariant()
    def nobody_waits_longer_than_those_before_take(self) -> None:
        assert all(self.steps <= self.due[request] for request in self.loop.waiting)

    @invariant()
    def lengths_are_what_they_say(self) -> None:
        for batch in self.loop.batches:
            for request, held in zip(batch.rows, batch.held.lengths, strict=True):
                assert request.ended or held == request.read + len(request.new) - 1 == request.held
        assert all(0 <= request.read <= len(request.ids) for request in self.asked)
        assert len({id(request) for request in self.loop.ended}) == len(self.loop.ended)  # each ends once

    @invariant()
    def bytes_stay_within_the_budget(self) -> None:
        assert self.buffers.most <= self.loop.memory
        assert self.loop.num_bytes == self.buffers.num_bytes  # those that are counted are those that exist
        batches = self.loop._all()
        assert sum(batch.room for batch in batches) * self.loop.per_token <= self.loop.memory
        each = self.loop.per_token * 2 // 3  # which counts one of two layers twice
        assert all(batch.held.num_bytes <= batch.room * each for batch in batches)

    def teardown(self) -> None:
        with torch.inference_mode():
            for _ in range(2000):
                if not self.loop.busy:
                    break
                self.loop.step()
        self.patch.undo()
        assert not self.loop.busy
        assert self.buffers.num_bytes == self.loop.num_bytes == 0
        assert self.buffers.most <= self.loop.memory
        assert sorted(map(id, self.loop.ended)) == sorted(map(id, self.asked))
        for request in self.asked:
            assert request.error is None
            assert request.says.read == request.new
            want = alone(self.model, request)
            assert request.new == want[: len(request.new)]
            assert request.cancelled or request.new == want


class Sliding(Comings):
    kind = "sliding"


class Mixed(Comings):
    kind = "mixed"


few = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
TestComings, TestSliding, TestMixed = Comings.TestCase, Sliding.TestCase, Mixed.TestCase
TestComings.settings = TestSliding.settings = TestMixed.settings = few


def test_a_step_that_fails_ends_its_own_rows_and_the_others_go_on() -> None:
    model = MODELS["llama"]
    good, bad = Shifted(model), Shifted(model)
    loop = Loop(model, 0)
    fine, broken = [asked(good, [5, 6, 7], 9) for _ in range(2)], asked(bad, [8, 9], 9)
    loop.waiting.extend([*fine, broken])
    with torch.inference_mode():
        while not broken.new:
            loop.step()
        bad.model = None  # its next step raises
        broken.plan = 1
        while loop.busy:
            loop.step()
    assert isinstance(broken.error, AttributeError)
    assert 0 < len(broken.new) < 9
    assert all(request.error is None and request.new == alone(model, request) for request in fine)


def run(loop: Loop, *requests: Request) -> None:
    """These, and whoever else is there, to the end."""
    loop.waiting.extend(requests)
    with torch.inference_mode():
        while loop.busy:
            loop.step()


def weighed(model: Any, tokens: int) -> Loop:
    """A loop with memory for so many tokens."""
    loop = Loop(model, 0)
    loop.per_token = bytes_of(asked(Shifted(model), [5], 1), loop)
    loop.memory = tokens * loop.per_token
    return loop


@pytest.mark.parametrize("spare", [-1, 0])
def test_rows_join_where_the_larger_batch_fits_and_else_step_by_themselves(
    spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS["llama"]
    serve, buffers = Shifted(model), Buffers(monkeypatch)
    loop = weighed(model, 2 * (50 + 40 + rectangle.ROOM) + spare)
    long, short = asked(serve, [5 + i for i in range(50)], 40), asked(serve, [7] * 3, 30)
    with torch.inference_mode():
        loop.waiting.append(long)
        loop.step()
        loop.waiting.append(short)
        while not short.new:
            loop.step()
    assert len(loop.batches) == (2 if spare else 1)
    run(loop)
    assert [long.new, short.new] == [alone(model, long), alone(model, short)]
    assert 0 < buffers.most <= loop.memory
    assert buffers.num_bytes == 0


@pytest.mark.parametrize("spare", [-1, 0])
def test_what_can_never_run_is_refused_and_the_others_go_on(spare: int) -> None:
    """Callers ask before they submit; but somebody may lower the budget meanwhile."""
    model = MODELS["llama"]
    serve, loop = Shifted(model), weighed(model, 50 + 40 + rectangle.ROOM + spare)
    large, small = asked(serve, [5] * 50, 40), asked(serve, [6] * 20, 30)
    run(loop, large, small)
    assert small.new == alone(model, small)
    told = refusal(50, 40, loop.per_token, loop.memory)
    assert (large.error is None) == (told is None) == (spare == 0)
    if told is not None:
        assert str(large.error) == str(told)
        assert "A prompt of 50 tokens with up to 40 new ones" in str(told)
        assert large.new == []


def test_rows_that_cannot_join_for_want_of_memory_end_and_so_do_those_that_they_were_to_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some layers have joined by then, others have not: nobody could go on from there."""
    model = MODELS["llama"]
    serve, other, loop = Shifted(model), Shifted(model), Loop(model, 0)
    there, apart, new = asked(serve, [5, 6, 7], 40), asked(other, [8, 9], 40), asked(serve, [4] * 5, 9)
    take, calls = rectangle.Held.take, list[int]()

    def fail(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        take(*args)

    loop.waiting.extend([there, apart])
    with torch.inference_mode():
        while not there.new or not apart.new:
            loop.step()
    monkeypatch.setattr(rectangle.Held, "take", fail)
    run(loop, new)
    assert len(calls) == 2
    assert isinstance(new.error, MemoryError)
    assert there.error is new.error
    assert apart.error is None
    assert apart.new == alone(model, apart)
    assert sorted(map(id, loop.ended)) == sorted(map(id, [there, apart, new]))
    assert loop.num_bytes == 0


def test_a_row_that_has_ended_takes_no_more_positions() -> None:
    """While it waits to leave, one of many, it is at the last position that the model knows."""
    model = learned_positions(24)
    serve, loop = Shifted(model), Loop(model, 0)
    rows = [asked(serve, [5 + i for i in range(20)], 4), *(asked(serve, [7 + i, 8], 22) for i in range(9))]
    run(loop, *rows)
    assert [row.error for row in rows] == [None] * 10
    assert [row.new for row in rows] == [alone(model, row) for row in rows]


def test_rows_of_the_base_model_alone_run_no_hook() -> None:
    model = MODELS["llama"]
    serve, loop = Shifted(model), Loop(model, 0)
    loop.waiting.extend([asked(serve, [5, 6], 4), asked(serve, [7], 4)])
    with torch.inference_mode():
        while loop.busy:
            loop.step()
    assert serve.calls == 0
    loop.waiting.append(asked(serve, [5, 6], 4, plan=1))
    with torch.inference_mode():
        while loop.busy:
            loop.step()
    assert serve.calls == 4


@pytest.mark.parametrize(
    ("before", "length", "most"),
    [
        ([(1, 12)] * 4, 30, 3),  # all rows are taken
        ([(1, 12)] * 2, 200, 100),  # he wants all the memory that there is
        ([(300, 12)], 2, 3),  # somebody's long prompt is being read
        ([(300, 12), (200, 100), (1, 5), (200, 100)], 1, 1),  # all of these
        ([], 300, 5),  # nothing
    ],
)
def test_whoever_waits_starts_within_some_steps_however_many_come(
    before: list[tuple[int, int]], length: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilora.engine.loop.SLICE", 16)
    model = MODELS["llama"]
    serve, loop = Shifted(model), weighed(model, 300 + 12 + rectangle.ROOM)
    loop.most = 4
    there = [asked(serve, [9] * length, most) for length, most in before]
    last, steps = asked(serve, [5] * length, most), 0
    loop.waiting.extend([*there, last])
    bound = sum(slices(request) + request.most for request in there)
    with torch.inference_mode():
        while not last.new:
            loop.waiting.append(asked(serve, [9], 12))
            loop.step()
            steps += 1
            assert last not in loop.waiting or steps <= bound
            assert steps <= bound + slices(last)
    assert loop.waiting


def test_whoever_gives_up_need_not_wait_for_those_before_him() -> None:
    model = MODELS["llama"]
    serve, loop = Shifted(model), Loop(model, 0)
    loop.most = 1
    rows = [asked(serve, [5, 6], 30) for _ in range(4)]
    loop.waiting.extend(rows)
    with torch.inference_mode():
        loop.step()
        rows[2].cancelled = True
        loop.step()
    assert loop.ended == [rows[2]]
    assert list(loop.waiting) == [rows[1], rows[3]]


HARMS = {
    "a column too many": lambda batch: batch.held.lengths.__setitem__(0, batch.held.lengths[0] + 1),
    "rows in another order": lambda batch: batch.rows.reverse(),
    "a token too few": lambda batch: batch.rows[0].new.pop(),
    "less of a prompt": lambda batch: setattr(batch.rows[0], "read", batch.rows[0].read - 1),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_row_that_has_lost_count_is_found(harm: str) -> None:
    model = MODELS["llama"]
    serve, other, loop = Shifted(model), Shifted(model), Loop(model, 0)
    rows, fine = [asked(serve, [5, 6, 7], 9), asked(serve, [8], 9)], asked(other, [9, 4], 20)
    loop.waiting.extend([*rows, fine])
    with torch.inference_mode():
        for _ in range(3):
            loop.step()
    HARMS[harm](loop.batches[0])
    run(loop)
    assert all(isinstance(row.error, AssertionError) for row in rows)
    assert fine.new == alone(model, fine)


def test_a_prompt_is_read_once_and_before_its_answer() -> None:
    request = asked(Shifted(MODELS["llama"]), [5, 6, 7], 2)
    with pytest.raises(AssertionError):
        request.take(9)
    request.read_on(3)
    assert request.held == 3
    with pytest.raises(AssertionError):
        request.read_on(1)
    request.read = 3
    request.take(9)
    assert request.held == 3
    request.take(9)
    assert request.held == 4
    assert request.ended
    with pytest.raises(AssertionError):
        request.take(9)
    with pytest.raises(AssertionError):
        request.end()


def test_a_long_prompt_is_read_in_slices_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilora.engine.loop.SLICE", 16)
    model = MODELS["llama"]
    serve, loop = Shifted(model), Loop(model, 0)
    short, long = asked(serve, [5, 6], 40), asked(serve, [7 + i % 40 for i in range(100)], 3)
    with torch.inference_mode():
        loop.waiting.append(short)
        loop.step()
        loop.waiting.append(long)
        before, stalled = len(short.new), 0
        while not long.new:
            loop.step()
            stalled = stalled + 1 if len(short.new) == before else 0
            before = len(short.new)
            assert stalled <= 1  # a slice, then a token for the others
        while loop.busy:
            loop.step()
    assert long.new == alone(model, long)
    assert short.new == alone(model, short)


def test_noise_is_a_function_of_key_and_position() -> None:
    key = draw_key(3, "abab", 0)
    assert torch.equal(gumbel(key, 7, 50), gumbel(key, 7, 50))
    others = [gumbel(key, 8, 50), gumbel(draw_key(4, "abab", 0), 7, 50), gumbel(draw_key(3, "abab", 1), 7, 50)]
    others.append(gumbel(draw_key(3, "abba", 0), 7, 50))
    assert not any(torch.equal(gumbel(key, 7, 50), other) for other in others)
    drawn = torch.cat([gumbel(key, position, 500) for position in range(200)]).double()
    assert abs(float(drawn.mean()) - 0.5772) < 0.02  # Gumbel: mean 0.5772, variance pi^2 / 6
    assert abs(float(drawn.var()) - 1.6449) < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_a_rectangle_keeps_what_each_row_holds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come, grow and go; each finds its own numbers, however the buffers were moved.

    Buffers stay, or are replaced by such as the rows need, layer by layer.
    """
    monkeypatch.setattr("hilora.engine.rectangle.ROOM", 2)
    buffers = Buffers(monkeypatch)
    random = torch.Generator().manual_seed(seed)
    held, want = Rectangle(2, (2, 3)), list[list[float]]()

    def draw(count: int) -> list[float]:
        return torch.rand(count, generator=random).tolist()

    def write(rectangle: Rectangle, parts: list[list[float]]) -> None:
        longest = max(map(len, parts))
        rectangle.make_room(longest)
        new = torch.tensor([[0.0] * (longest - len(part)) + part for part in parts])[:, None, :, None]
        for layer, sign in zip(rectangle.cache.layers, (1, -1), strict=True):
            layer.update(sign * new, 10 * sign * new)
        rectangle.grew(longest, [len(part) for part in parts])

    def check() -> None:
        for layer, sign in zip(held.cache.layers, (1, -1), strict=True):
            for row, numbers in enumerate(want):
                mine = layer.keys[row, 0, held.frame.width - len(numbers) :, 0]
                torch.testing.assert_close(mine, sign * torch.tensor(numbers))
                torch.testing.assert_close(
                    layer.values[row, 0, -len(numbers) :, 0], 10 * sign * torch.tensor(numbers)
                )

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=random))

    held.open(1)
    want = [draw(4)]
    write(held, want)
    for _ in range(60):
        before, size = held.num_bytes, held.size
        buffers.most = 0
        what = number(3)
        if what == 0:
            parts = [draw(1 + number(6)) for _ in range(1 + number(3))]
            other = Rectangle(2, (len(parts), 1))
            other.open(len(parts))
            write(other, parts)
            before += other.num_bytes
            buffers.most = 0
            held.join(other)
            want += parts
            assert other.num_bytes == 0
        elif what == 1 and len(want) > 1:
            gone = sorted({number(len(want)) for _ in range(1 + number(3))})[: len(want) - 1]
            want = [want[was] for was in held.leave(gone)]
        else:
            parts = [draw(1) for _ in want]
            write(held, parts)
            want = [row + part for row, part in zip(want, parts, strict=True)]
        assert held.size == size or math.prod(held.size) <= rectangle.most_room(len(want), max(map(len, want)))
        assert held.num_bytes == buffers.num_bytes == 2 * 2 * 4 * math.prod(held.size)
        assert buffers.most <= max(before, held.num_bytes) * 3 / 2  # one of two layers is there twice
        assert held.lengths == list(map(len, want))
        assert held.mask.sum(1).tolist() == held.lengths
        assert held.frame.width == max(held.lengths)
        check()
    held.leave(range(len(want)))
    assert held.lengths == []


def test_two_callers_share_steps_and_each_gets_his_own() -> None:
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: sizes.append(len(k["input_ids"])), with_kwargs=True)
    found: dict[int, list[list[int]]] = {}
    barrier = threading.Barrier(2)

    def call(number: int) -> None:
        mine = [asked(serve, [5 + number, 6 + i], 30) for i in range(3)]
        barrier.wait()
        list(drive(engine, iter(mine), 3, SimpleQueue()))
        found[number] = [request.new for request in mine]

    threads = [threading.Thread(target=call, args=[number]) for number in (0, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert max(sizes) > 3
    for number, news in found.items():
        assert news == [alone(model, asked(serve, [5 + number, 6 + i], 30)) for i in range(3)]
    assert engine.loop.num_bytes == 0


def test_a_job_has_the_model_for_itself_and_says_what_went_wrong() -> None:
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)
    ran: list[int] = []

    def run(job: Job) -> None:
        assert serve.open == 0
        ran.append(1)

    def fail(job: Job) -> None:
        raise ZeroDivisionError

    works = [Job(run), asked(serve, [5, 6], 5, plan=1), Job(run)]
    assert set(drive(engine, iter(works), 3, SimpleQueue())) == set(works)
    assert ran == [1, 1]
    with pytest.raises(ZeroDivisionError):
        list(drive(engine, iter([Job(fail), asked(serve, [5], 5)]), 2, SimpleQueue()))
    with engine.alone():
        pass
    assert not engine.loop.busy


def ends(work: Any) -> bool:
    """Whether it ends soon, by itself or by an error."""

    def run() -> None:
        with suppress(BaseException):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


class Interrupted(SimpleQueue):  # type: ignore[type-arg]
    """Ctrl-C just when the first end has been taken."""

    count = 0

    def get(self, *args: Any, **options: Any) -> Any:
        found = super().get(*args, **options)
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
        return found


def test_ctrl_c_just_when_an_end_is_taken_keeps_nobody_waiting() -> None:
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)
    mine = [asked(serve, [5, 6], 3), asked(serve, [7], 450)]
    assert ends(lambda: list(drive(engine, iter(mine), 2, Interrupted())))
    assert all(request.ended for request in mine)
    assert len(mine[1].new) < 450


def test_ctrl_c_just_before_anything_is_asked_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]
    serve, engine, go = Shifted(model), Engine(model, 0), threading.Event()
    mine, busy = asked(serve, [5, 6], 3), Job(lambda job: go.wait(60))

    def submit(works: Any) -> None:
        raise KeyboardInterrupt

    engine.submit([busy])
    monkeypatch.setattr(engine, "submit", submit)
    assert ends(lambda: list(drive(engine, iter([mine]), 1, SimpleQueue())))
    go.set()
    assert not mine.taken


@pytest.mark.parametrize(("error", "is_started"), [(RuntimeError, False), (KeyboardInterrupt, True)])
def test_a_thread_that_could_not_be_started_is_started_for_the_next(
    error: type[BaseException], is_started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are too many threads, or Ctrl-C came just then."""
    model = MODELS["llama"]
    serve, engine, start = Shifted(model), Engine(model, 0), threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if is_started:
            start(thread)
        raise error

    first, second = asked(serve, [5], 3), asked(serve, [6], 3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(error):
            list(drive(engine, iter([first]), 1, SimpleQueue()))
    assert ends(lambda: list(drive(engine, iter([second]), 1, SimpleQueue())))
    assert first.new == []
    assert second.new == alone(model, second)


def test_what_is_given_up_before_it_began_never_begins() -> None:
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)
    request = asked(serve, [5], 5)
    with engine.alone():
        engine.submit([request])
        assert engine.give_up({request}) == set()
    assert request.cancelled
    assert request.new == []


def test_a_prompt_that_can_never_fit_is_refused_before_anything_runs(
    shared_pool: Any, tokenizer: Any, embedder: Any
) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(
        copy.deepcopy(model), pool, "hilora", tokenizer=tokenizer, embedder=embedder, kv_memory="60kB"
    )
    assert len(router.generate(["abab", "zzy"], max_new_tokens=4)) == 2
    with pytest.raises(InputError, match="Raise kv_memory, shorten the prompt, or ask for fewer"):
        router.generate(["abab", "zzy"], max_new_tokens=200)
    assert not router.lanes.engine.loop.busy
    assert router.lanes.engine.loop.num_bytes == 0


@pytest.mark.parametrize(("temperature", "joins"), [(0, False), (0.7, True)])
def test_several_answers_join_only_where_they_are_drawn(temperature: float, joins: bool) -> None:
    drawn_by_default = tf.GenerationConfig(do_sample=True)
    options = {"max_new_tokens": 4, "temperature": temperature, "num_return_sequences": 2}
    assert can_join(options, drawn_by_default) is joins


def test_a_job_takes_turns_with_requests_and_other_jobs() -> None:
    """Each job's adapters are off while others have the model, and on again when it goes on."""
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)
    turns: list[str] = []
    on: list[str] = []

    def job(name: str) -> Job:
        @contextmanager
        def served(places: Any) -> Iterator[None]:
            assert not on
            assert serve.open == 0
            on.append(f"{name}{list(places)}")
            yield
            on.remove(f"{name}{list(places)}")

        def run(job: Job) -> None:
            shared = Shared(job, served)
            with shared([0, 1]):
                for _ in range(6):
                    assert on == [f"{name}[0, 1]"]
                    turns.append(name)
                    shared.between()

        return Job(run)

    mine = asked(serve, [5, 6], 9, plan=1)
    take = mine.says.feed
    mine.says.feed = lambda token: (turns.append("request"), take(token))
    works = [job("a"), job("b"), job("c"), mine]
    assert set(drive(engine, iter(works), 4, SimpleQueue())) == set(works)
    assert mine.new == alone(model, asked(serve, [5, 6], 9, plan=1))
    assert [work.error for work in works] == [None] * 4
    assert on == []
    first = {name: turns.index(name) for name in ("a", "b", "c", "request")}
    last = {name: len(turns) - turns[::-1].index(name) for name in ("a", "b", "c", "request")}
    assert max(first[name] for name in ("a", "b", "request")) < min(last[name] for name in ("a", "b", "request"))
    assert first["c"] > min(last["a"], last["b"])  # two are under way at most


def test_a_job_that_nobody_wants_any_more_leaves_no_thread() -> None:
    model = MODELS["llama"]
    engine, before = Engine(model, 0), threading.active_count()

    def run(job: Job) -> None:
        while not job.cancelled:
            Shared(job, lambda places: nullcontext()).between()

    jobs = [Job(run) for _ in range(3)]
    ended = SimpleQueue[Any]()
    for each in jobs:
        each.on_end = ended.put
    engine.submit(jobs)
    left = engine.give_up(set(jobs))
    assert {ended.get(timeout=10) for _ in left} == left
    with engine.alone():
        pass
    while threading.active_count() > before:
        time.sleep(0.01)


def test_what_is_nobodys_fault_ends_everybody_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]
    serve, engine = Shifted(model), Engine(model, 0)

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.loop, "admit", fail)
    with pytest.raises(ZeroDivisionError):
        list(drive(engine, iter([asked(serve, [5, 6], 5), asked(serve, [7], 5)]), 2, SimpleQueue()))
    monkeypatch.undo()
    again = asked(serve, [5, 6], 5)
    assert list(drive(engine, iter([again]), 1, SimpleQueue())) == [again]
    assert again.new == alone(model, asked(serve, [5, 6], 5))
