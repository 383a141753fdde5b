"""A chooser gives what a planner gives, to each caller by himself, over the pool as it was when he asked."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hilora import Planner, Pool, get_method
from hilora.errors import InputError
from hilora.gateway.chooser import Chooser, Chosen
from hilora.gateway.parts import Room, check_method, parts_of
from hilora.serve.asked import Ask, Caller
from hilora.serve.faults import BusyError, ClosingError, MissingError, ServiceError
from hilora.serve.tenants import inner_name

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132"]
Make = Callable[..., Chooser]


@pytest.fixture
def pool(shared_pool: Any, tmp_path: Path) -> Pool:
    shutil.copytree(shared_pool("llama")[1].path, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


@pytest.fixture
def make(pool: Pool, embedder: Any) -> Iterator[Make]:
    made: list[Chooser] = []

    def chooser(method: str = "hilora", **options: Any) -> Chooser:
        made.append(Chooser(pool, method, embedder=embedder, **options))
        return made[-1]

    yield chooser
    for each in made:
        each.close()


def choose(chooser: Chooser, *asks: Ask) -> list[Chosen | BaseException]:
    """All at once."""

    async def together() -> list[Chosen | BaseException]:
        return await asyncio.gather(*map(chooser.choose, asks), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(together(), 60))


@pytest.mark.parametrize("method", ["hilora", "hilora-plus", "selection", "mixture", "hilora-gs"])
def test_what_is_chosen_is_what_a_planner_plans(make: Make, pool: Pool, embedder: Any, method: str) -> None:
    found = choose(make(method), *(Ask(prompt, seed=3) for prompt in PROMPTS))
    planner = Planner(pool, get_method(method), embedder)
    for prompt, chosen in zip(PROMPTS, found, strict=True):
        assert isinstance(chosen, Chosen)
        routed = planner.route([prompt])
        assert chosen.parts == parts_of(planner.method, routed.source, planner.plan(routed, [0], 3))
        (told,) = planner.explain(routed, 3)
        near = [(c.name, pytest.approx(c.score, abs=1e-4), c.rocs) for c in told]
        assert [(c.name, c.score, c.rocs) for c in chosen.why.choices] == near


def test_one_bad_prompt_is_its_own_affair(make: Make) -> None:
    good, empty, missing, base, named = choose(
        make(), Ask("aaa"), Ask(" "), Ask("aaa", model="alhpa"), Ask("aaa", model="base"), Ask("zzy", model="alpha")
    )
    assert isinstance(good, Chosen)
    assert isinstance(empty, InputError)
    assert isinstance(missing, MissingError)
    assert "Did you mean 'alpha'?" in str(missing)
    assert isinstance(base, Chosen)
    assert (base.parts, base.why.method) == ((), "base")
    assert isinstance(named, Chosen)
    assert [(part.factor, part.is_whole) for part in named.parts] == [(1.0, True)]


def test_other_methods_and_options_are_those_that_are_served(make: Make) -> None:
    chooser = make("hilora", methods=["mixture"])
    two, gone, wrong = choose(
        chooser,
        Ask("aaa", method="mixture", options={"k": 2}),
        Ask("aaa", method="selection"),
        Ask("aaa", method="mixture", options={"kk": 2}),
    )
    assert isinstance(two, Chosen)
    assert [part.factor for part in two.parts] == [0.5, 0.5]
    assert isinstance(gone, ServiceError)
    assert isinstance(wrong, InputError)
    with pytest.raises(InputError, match="not a fixed sum"):
        make("fusion")
    with pytest.raises(InputError, match="chooses ROCs"):
        make("mixture", methods=["hilora"], check=partial(check_method, whole=True))


def test_a_changed_pool_serves_those_who_come_later(make: Make, pool: Pool) -> None:
    chooser = make("selection", options={})
    (before,) = choose(chooser, Ask("aaa abab"))
    assert isinstance(before, Chosen)
    (name,) = [choice.name for choice in before.why.choices]
    pool.remove(name)
    chooser.change(Pool.open(pool.path))
    (after,) = choose(chooser, Ask("aaa abab"))
    assert isinstance(after, Chosen)
    assert [choice.name for choice in after.why.choices] != [name]
    assert before.source.factors(before.parts[0].content)  # what was chosen stays what it was
    (gone,) = choose(chooser, Ask("aaa", model=name))
    assert isinstance(gone, MissingError)


def test_adapters_without_room_are_left_out_and_told(make: Make) -> None:
    everything, cut = make("mixture"), make("mixture", room=Room(adapters=2))
    (all_of,), (two,) = choose(everything, Ask("aaa")), choose(cut, Ask("aaa"))
    assert isinstance(all_of, Chosen)
    assert isinstance(two, Chosen)
    assert [choice.name for choice in two.why.choices] == [choice.name for choice in all_of.why.choices][:2]
    assert "left out" in two.why.note
    assert sum(part.factor for part in two.parts) == pytest.approx(1)
    (none,) = choose(make("mixture", room=Room(ranks=1)), Ask("aaa"))
    assert isinstance(none, ServiceError)
    assert "fits" in str(none)


def test_others_private_adapters_are_never_chosen(make: Make, pool: Pool, tiny: Any, embedder: Any) -> None:
    name = inner_name("acme", "secret")
    folder = tiny.adapter(pool.path.parent / "own", tiny.sites(tiny.model("llama"), "llama"), rank=2, seed=9)
    pool.add(name, folder, tiny.texts("alpha", 12, 5), embedder)
    with pool._edit() as draft:
        draft.entries[name] = replace(draft[name], extra={"tenant": "acme", "called": "secret"})
    chooser = make("mixture", options={"k": 5})
    chooser.change(Pool.open(pool.path))
    stranger, owner = choose(chooser, Ask("aaa", caller=Caller("other")), Ask("aaa", caller=Caller("acme")))
    assert isinstance(stranger, Chosen)
    assert isinstance(owner, Chosen)
    assert len(owner.parts) == len(stranger.parts) + 1
    assert "secret" in {choice.name for choice in owner.why.choices}


def test_more_than_may_wait_are_refused_and_a_closed_one_refuses_all(make: Make) -> None:
    chooser = make(waiting=0)
    (busy,) = choose(chooser, Ask("aaa"))
    assert isinstance(busy, BusyError)
    chooser.close()
    (closed,) = choose(chooser, Ask("aaa"))
    assert isinstance(closed, ClosingError)
