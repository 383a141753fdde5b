"""Laws of the line: nobody starves, nothing is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hilora.serve.line import Line

KINDS = st.tuples(st.sampled_from("ABC"), st.sampled_from("xyz"))


@given(st.lists(KINDS, max_size=40))
def test_everybody_comes_out_once_and_each_adapters_own_in_their_order(kinds: list[tuple[str, str]]) -> None:
    line: Line[int] = Line()
    for number, (tenant, adapter) in enumerate(kinds):
        line.put(number, tenant, adapter)
    assert sorted(line) == list(range(len(kinds)))
    out = [line.pop() for _ in range(len(line))]
    assert sorted(out) == list(range(len(kinds)))
    for kind in set(kinds):
        assert [number for number in out if kinds[number] == kind] == sorted(n for n in out if kinds[n] == kind)


@given(st.lists(KINDS, max_size=30), KINDS)
def test_many_of_others_delay_the_first_of_somebody_by_a_turn_each(kinds: list[tuple[str, str]], mine: Any) -> None:
    line: Line[int] = Line()
    for number, (tenant, adapter) in enumerate(kinds):
        line.put(number, tenant, adapter)
    line.put(-1, *mine)
    before = []
    while (one := line.pop()) != -1:
        before.append(kinds[one])
    for tenant in {tenant for tenant, _ in before if tenant != mine[0]}:
        turns = sum(tenant == other for other, _ in before)
        assert turns <= 1 + len([kind for kind in before if kind[0] == mine[0]])
    own = [adapter for tenant, adapter in before if tenant == mine[0] and adapter != mine[1]]
    rounds = 1 + sum(kind == mine for kind in before)
    assert all(own.count(adapter) <= rounds for adapter in own)


@given(st.lists(KINDS, min_size=1, max_size=30), st.data())
def test_who_goes_is_gone(kinds: list[tuple[str, str]], data: st.DataObject) -> None:
    line: Line[int] = Line()
    for number, (tenant, adapter) in enumerate(kinds):
        line.put(number, tenant, adapter)
    gone = data.draw(st.sets(st.integers(0, len(kinds) - 1)))
    for number in gone:
        assert line.drop(number)
        assert not line.drop(number)
    assert {line.pop() for _ in range(len(line))} == set(range(len(kinds))) - gone
    assert len(line) == 0
