"""Adapters of a step find room together, and no request waits for ever."""

from __future__ import annotations

from hilora.vllm.admission import PATIENCE, Admission


def test_a_step_never_has_more_adapters_than_slots() -> None:
    admission, running = Admission(lambda: 0.0), list[set[str]]()
    for number, mine in enumerate([{"a", "b"}, {"c"}, {"b", "c"}, {"d"}, set(), {"a", "c"}]):
        if admission.may(str(number), mine, set().union(*running), 3):
            running.append(mine)
        assert len(set().union(*running)) <= 3
    assert running == [{"a", "b"}, {"c"}, {"b", "c"}, set(), {"a", "c"}]


def test_whoever_has_waited_too_long_is_not_passed_again() -> None:
    now = [0.0]
    admission = Admission(lambda: now[0])
    assert not admission.may("large", {"a", "b", "c"}, {"d"}, 3)
    assert admission.may("small", {"d"}, {"d"}, 3)
    now[0] = PATIENCE + 1
    assert not admission.may("small too", {"d"}, {"d"}, 3)
    assert admission.may("the base", set(), {"d"}, 3)
    assert admission.may("large", {"a", "b", "c"}, set(), 3)
    assert admission.may("small too", {"d"}, {"d"}, 3)


def test_whoever_has_left_holds_nobody_back() -> None:
    now = [0.0]
    admission = Admission(lambda: now[0])
    admission.may("large", {"a", "b"}, {"c"}, 2)
    now[0] = PATIENCE + 1
    admission.forget(lambda request: request != "large")
    assert admission.may("small", {"c"}, {"c"}, 2)
