"""What is kept in memory: never more bytes than allowed, the least used given up first, answers unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilora import HiLoRA, get_method
from hilora.errors import InputError
from hilora.planner import Planner
from hilora.pool.memory import Memory, num_bytes, parse_bytes


def filled(size: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Something of so many bytes."""
    return {"site": (torch.zeros(size, dtype=torch.int8), torch.zeros(0))}


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=30))
def test_never_more_than_the_limit_and_always_what_was_asked_for(limit: int, asked: list[tuple[int, int]]) -> None:
    memory, order = Memory(limit), []
    sizes: dict[int, int] = {}
    for key, drawn in asked:
        size = sizes.setdefault(key, drawn)
        assert num_bytes(memory.get(str(key), lambda size=size: filled(size))) == size  # type: ignore[misc]
        order = [each for each in order if each != key] + [key]
        while sum(sizes[each] for each in order) > limit:
            order.pop(0)
        assert memory.used == sum(sizes[each] for each in order) <= limit
        assert all((str(each) in memory) == (each in order) for each in sizes)
        assert len(memory) == len(order)


def test_a_value_is_made_once_while_there_is_room() -> None:
    made, memory = [], Memory("1kB")
    for key in ("a", "b", "a", "a", "b"):
        memory.get(key, lambda key=key: made.append(key) or filled(400))  # type: ignore[misc, func-returns-value]
    assert made == ["a", "b"]
    memory.get("c", lambda: filled(400))  # a was used before b
    assert "a" not in memory
    assert "b" in memory


def test_amounts_of_memory() -> None:
    assert parse_bytes(12) == 12
    assert parse_bytes("512MB") == 512_000_000
    assert parse_bytes(" 1.5 gib ") == 3 * 2**29
    for wrong in ("much", "-1", "12 XB", ""):
        with pytest.raises(InputError, match="amount of memory"):
            parse_bytes(wrong)


@pytest.mark.parametrize("method", ["hilora", "hilora-plus", "merged"])
def test_answers_do_not_depend_on_how_much_is_kept(
    method: str, shared_pool: Callable[[str], tuple[Any, Any]], embedder: Any, tokenizer: Any
) -> None:
    model, pool = shared_pool("llama")
    answers = []
    for limit in ("1GB", 0):
        planner = Planner(pool, get_method(method), embedder, Memory(limit))
        router = HiLoRA(model, tokenizer, planner)
        answers.append([router.generate([prompt], max_new_tokens=4)[0].text for prompt in ("one", "two words")])
        assert (len(planner.memory) > 0) == (limit != 0)
        assert planner.memory.used <= planner.memory.limit
    assert answers[0] == answers[1]


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12), st.booleans()), max_size=30))
def test_what_was_loaded_is_there_or_was_given_up_and_stacks_are_no_adapters(
    limit: int, asked: list[tuple[int, int, bool]]
) -> None:
    memory, made, stacks = Memory(limit), 0, set()
    for key, size, stack in asked:
        name = f"{key} {stack}"
        stacks.add(name) if stack else None
        made += not stack and name not in memory
        memory.get(name, lambda size=size: filled(size), stack=stack)  # type: ignore[misc]
        there = sum(f"{each} False" in memory for each in range(7))
        assert memory.loads == made == memory.evicted + there


def test_a_source_that_keeps_what_it_makes_loads_once() -> None:
    for limit in ("1kB", 0):  # also where nothing is kept
        memory = Memory(limit)
        memory.get("a", lambda memory=memory: memory.get("a", lambda: filled(9)))  # type: ignore[misc]
        assert (memory.loads, memory.evicted) == (1, int(limit == 0))


def test_a_hit_is_there_in_memory_or_laid_out() -> None:
    memory = Memory("1kB")
    memory.get("a", lambda: filled(9))
    memory.use(["a", "b", "c"], {"b"})
    assert (memory.hits, memory.loads) == (2, 1)
