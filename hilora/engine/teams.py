"""A thread that waits for another lets its OpenMP team go.

Each thread that computes has a team of threads that help it. Once the teams of all threads together are more than
the cores, GNU's OpenMP makes every helper sleep as soon as it has nothing to do, even those of teams that work on,
and each operation waits till they wake up: every step of a batch takes longer while the thread
that waits for its answers still has a team. It gets a new one, in less than a millisecond, when it computes again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

SOFT = 1
"""`omp_pause_soft`: threads go, settings stay."""


def let_team_go() -> None:
    """Called by a thread before it waits for another; nothing where OpenMP is not GNU's."""
    for library in _libraries():
        library.omp_pause_resource_all(SOFT)


@cache
def _libraries() -> list[Any]:
    openmp = ThreadpoolController().select(user_api="openmp").lib_controllers
    return [
        each.dynlib for each in openmp if each.prefix == "libgomp" and hasattr(each.dynlib, "omp_pause_resource_all")
    ]
