"""Rows, and which adapters they may use in each setting of the papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.rows import Row, choose_rows, load_rows
from hilora.evaluate.settings import SETTINGS, Case, make_cases, seen_tasks
from hilora.evaluate.statistics import task_seed

TASKS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"}
ROWS = [Row(f"{t}/{n}", t, c, f"{t} {n}", "x", ("exact_match",)) for t, c in TASKS.items() for n in range(2)]
ADAPTERS = ["a1", "a2", "a3", "b1", "b2", "c1", "else"]


def usable(case: Case) -> set[str]:
    return set(ADAPTERS) - set(case.deny)


def test_seeds_of_tasks_and_clusters_are_those_of_the_committed_rows() -> None:
    """Halves and intervals are drawn by them."""
    found = [task_seed(seed, name) for seed, name in ((0, "arc_easy"), (3, "arc_easy"), (0, "\ud800"))]
    assert found == [8667399168001085059, 11553303341637518448, 2071304730650545209]


def test_iid_masks_nothing_and_ood_the_rows_own_adapter() -> None:
    for case in make_cases("iid", ROWS, ADAPTERS):
        assert case.seen
        assert usable(case) == set(ADAPTERS)
    for case in make_cases("ood", ROWS, ADAPTERS):
        assert not case.seen
        assert usable(case) == set(ADAPTERS) - {case.row.task}


def test_cross_masks_the_rows_whole_cluster_also_tasks_without_rows() -> None:
    some = [row for row in ROWS if row.task in ("a1", "b1", "c1")]
    for case in make_cases("cross", some, ADAPTERS, clusters=TASKS):
        assert not case.seen
        assert usable(case) == {t for t in TASKS if TASKS[t] != case.row.cluster} | {"else"}


def test_within_sees_half_of_every_cluster_and_every_task_in_one_half_of_a_pair() -> None:
    cases = make_cases("within", ROWS, ADAPTERS, halves=4)
    assert {case.split for case in cases} == {"half0", "half1", "half2", "half3"}
    for half in range(4):
        own = [case for case in cases if case.split == f"half{half}"]
        assert {case.row.task for case in own} == set(TASKS) - {"c1"}  # a cluster of one has no half
        (pool,) = {frozenset(usable(case)) for case in own}
        assert all(case.seen == (case.row.task in pool) for case in own)
        assert "else" not in pool
        for cluster, count in (("a", 3), ("b", 2)):
            assert len([t for t in pool if TASKS[t] == cluster]) in (count // 2, (count + 1) // 2)
    for pair in (("half0", "half1"), ("half2", "half3")):
        seen = [{case.row.task for case in cases if case.split == half and case.seen} for half in pair]
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == set(TASKS) - {"c1"}


def test_halves_depend_on_the_seed_alone() -> None:
    names = {f"t{i}": "one" for i in range(20)}
    assert seen_tasks(names, 0, 1) == seen_tasks(dict(reversed(names.items())), 0, 1)
    assert len({frozenset(seen_tasks(names, half, seed)) for half in (0, 2) for seed in (0, 5)}) == 4


def test_mixed_keeps_rows_that_no_adapter_was_trained_on() -> None:
    cases = make_cases("mixed", ROWS, ["a1"])
    assert len(cases) == len(ROWS)
    assert all(case.seen == (case.row.task == "a1") for case in cases)
    assert all(not case.deny for case in cases)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "mixed"])
def test_rows_without_an_adapter_are_left_out_and_nothing_left_is_refused(setting: str) -> None:
    assert {case.row.task for case in make_cases(setting, ROWS, ["a1", "a2"])} == {"a1", "a2"}
    with pytest.raises(InputError, match="No adapter of the pool has the name"):
        make_cases(setting, ROWS, ["other"])


def test_what_cannot_be_halved_or_named_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to halve"):
        make_cases("within", ROWS, ["c1", "a1"])
    with pytest.raises(UnknownNameError, match="Did you mean 'cross'"):
        make_cases("cros", ROWS, ADAPTERS)


# --- rows ---------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in ("sst2", "dart"):
        rows = [{"cluster": task[0], "inputs": f"{task} {n}", "targets": str(n)} for n in range(10)]
        write(tmp_path / "data" / f"{task}.jsonl", rows)
    return tmp_path / "data"


def test_a_folder_and_one_file_hold_the_same_rows(data: Path, tmp_path: Path) -> None:
    folder = load_rows(data)
    lines = [{"task": r.task, "cluster": r.cluster, "inputs": r.inputs, "targets": r.targets} for r in folder]
    assert load_rows(write(tmp_path / "one.jsonl", lines)) == folder
    assert [row.id for row in folder[:2]] == ["dart/0", "dart/1"]
    assert folder[0].metrics[0] == "rouge1"


def test_parts_share_no_row_and_make_up_all(data: Path) -> None:
    first, second = choose_rows(load_rows(data), part="first"), choose_rows(load_rows(data), part="second")
    assert not {r.id for r in first} & {r.id for r in second}
    assert sorted(r.id for r in first + second) == sorted(r.id for r in load_rows(data))


def test_a_draw_per_task_depends_on_the_seed_and_the_task(data: Path) -> None:
    drawn = choose_rows(load_rows(data), per_task=4, seed=3)
    assert [row.task for row in drawn] == ["dart"] * 4 + ["sst2"] * 4
    assert drawn == choose_rows(load_rows(data), per_task=4, seed=3)
    assert drawn != choose_rows(load_rows(data), per_task=4, seed=4)
    assert drawn[:4] == choose_rows(load_rows(data), per_task=4, seed=3, tasks=["dart"])


def test_bad_rows_and_names_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sst2'"):
        choose_rows(load_rows(data), tasks=["sst"])
    with pytest.raises(UnknownNameError, match="cluster"):
        choose_rows(load_rows(data), clusters=["nli"])
    with pytest.raises(UnknownNameError, match="part"):
        choose_rows(load_rows(data), part="third")
    with pytest.raises(InputError, match="There is no"):
        load_rows(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no rows"):
        load_rows(write(tmp_path / "empty.jsonl", []))
    for line in ("{", '{"inputs": "a"}', "[1]", '"text"'):
        (tmp_path / "bad.jsonl").write_text('{"inputs": "a", "targets": "b"}\n' + line + "\n")
        with pytest.raises(InputError, match="line 2"):
            load_rows(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("number", [0, -3])
def test_no_rows_of_a_task_are_refused(number: int) -> None:
    with pytest.raises(InputError, match=f"per_task.*got {number}, expected at least 1"):
        choose_rows(ROWS, per_task=number)


def test_rows_of_which_none_is_left_are_refused() -> None:
    for empty in ({"tasks": []}, {"clusters": []}, {"tasks": ["a1"], "clusters": ["b"]}):
        with pytest.raises(InputError, match="No row is left"):
            choose_rows(ROWS, **empty)
    with pytest.raises(InputError, match="part 'first'"):
        choose_rows(ROWS[:1], part="first")
