"""The papers' settings: which adapters a row may use, and whether its task has one among them.

    iid      the row's own adapter is in the pool, with all others (RAMoLE's IID)
    ood      the row's own adapter is masked, all others are there (RAMoLE's OOD)
    within   half of each cluster's tasks have their adapters in the pool, half do not (HiLoRA, within-cluster)
    cross    no adapter of the row's cluster is in the pool (HiLoRA, cross-cluster)
    mixed    all rows of the data, also of tasks that no adapter was trained on; nothing is masked

A row's own adapter is the one with the name of its task. In `within` the pool holds the seen tasks' adapters only;
halves come in pairs, the second of which sees what the first does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.rows import Row, cluster_of
from hilora.evaluate.statistics import task_seed

SETTINGS = ("iid", "ood", "within", "cross", "mixed")


@dataclass(frozen=True)
class Case:
    """A row under a setting.

    Attributes:
        row: the row.
        split: which of the setting's pools: "half0" and so on, else the setting's name.
        deny: adapters that are masked.
        seen: whether the row's own adapter may be used.
    """

    row: Row
    split: str
    deny: tuple[str, ...]
    seen: bool


def make_cases(
    setting: str,
    rows: Sequence[Row],
    adapters: Collection[str],
    *,
    clusters: Mapping[str, str] | None = None,
    halves: int = 2,
    seed: int = 0,
) -> list[Case]:
    """All cases of a setting.

    Args:
        setting: one of `SETTINGS`.
        rows: what to measure on; rows of tasks without an adapter are left out, but for "mixed".
        adapters: names of the pool's.
        clusters: task -> cluster, where adapters belong to tasks that have no row here; default: of the rows.
        halves: for "within".
        seed: of the halves.

    Raises:
        InputError: no row's task has an adapter, or no cluster has two tasks to halve.
    """
    if setting not in SETTINGS:
        raise UnknownNameError("setting", setting, SETTINGS)
    if setting == "mixed":
        return [Case(row, setting, (), row.task in adapters) for row in rows]
    kept = [row for row in rows if row.task in adapters]
    if not kept:
        raise InputError(
            "No adapter of the pool has the name of a task of the data: nothing to measure. Try 'mixed'."
        )
    if setting == "within":
        return _within(kept, adapters, halves, seed)
    if setting == "iid":
        return [Case(row, setting, (), True) for row in kept]
    if setting == "ood":
        return [Case(row, setting, (row.task,), False) for row in kept]
    known = clusters or cluster_of(rows)
    members: dict[str, list[str]] = {}
    for task in sorted(adapters):
        members.setdefault(known.get(task, ""), []).append(task)
    return [Case(row, setting, tuple(members[row.cluster]), False) for row in kept]


def seen_tasks(tasks: Mapping[str, str], half: int, seed: int = 0) -> set[str]:
    """The seen tasks of one half: half of each cluster, rounded up in even halves; odd ones are the complements.

    Args:
        tasks: task -> cluster.
        half: its number.
        seed: of the draw.
    """
    seen: set[str] = set()
    for cluster in sorted(set(tasks.values())):
        names = sorted(task for task, own in tasks.items() if own == cluster)
        order = np.random.default_rng(task_seed(seed + half // 2, cluster)).permutation(len(names))
        cut = (len(names) + 1) // 2
        seen |= {names[i] for i in (order[:cut] if half % 2 == 0 else order[cut:])}
    return seen


def _within(rows: Sequence[Row], adapters: Collection[str], halves: int, seed: int) -> list[Case]:
    known = cluster_of(rows)
    counts = {cluster: list(known.values()).count(cluster) for cluster in known.values()}
    tasks = {task: cluster for task, cluster in known.items() if counts[cluster] > 1}  # no half of one
    if not tasks:
        raise InputError("No cluster has two tasks with adapters: there is nothing to halve. Try 'iid' or 'ood'.")
    cases = []
    for half in range(halves):
        seen = seen_tasks(tasks, half, seed)
        deny = tuple(sorted(set(adapters) - seen))
        cases += [Case(row, f"half{half}", deny, row.task in seen) for row in rows if row.task in tasks]
    return cases
