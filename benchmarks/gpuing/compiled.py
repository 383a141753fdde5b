"""Targets with compiling: a decoding step of a batch in static slots, and what compiling takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpuing.contend import by_hilora, by_transformers, with_lora
from gpuing.room import Room
from gpuing.sizes import SITES
from gpuing.timing import free, profiled, timed
from hilora import Pool
from hilora.bench.stage import Contender
from hilora.bench.workload import Workload
from hilora.engine.compiled.options import Compile
from hilora.pool.view import PoolView

Rows = Iterator[dict[str, Any]]
CONTENDERS = {"q and v": ("base", "hilora", "plain", "transformers"), "all seven": ("base", "hilora", "plain")}
BARE = ("base", "plain", "base_rows")
"""Whose rows use no adapter of the pool."""
SCRIPT = Path(__file__).parents[1] / "gpu.py"
PATIENCE_S = 240
MOST_LAUNCHES = 200
"""Of a step that is replayed; an eager one has over a thousand."""


def compile_of(room: Room) -> Compile:
    """One size: the batch, as many tokens as its rows come to hold, as many adapters as it uses."""
    tokens = room.size.words + room.size.new_tokens + 1
    return Compile((room.size.batch,), (-(-tokens // 16) * 16,), room.size.distinct, room.size.backend)


def room_router(name: str, room: Room, pool: PoolView, **options: Any) -> Any:
    """A contender's router, on a model of its own."""
    model = room.twin()
    if name == "plain":
        model = with_lora(model, pool.factors(pool.entries[0].hash))
    return room.router("hilora", pool, model, **options)


def router_of(name: str, room: Room, pool: PoolView) -> tuple[Any, float]:
    """A contender's router, compiled, and the seconds that it took.

    `base` and `plain` are rows without adapters in steps that have no sites: the same slots for keys and values, the
    same buffers and the same engine around them.
    """
    router = room_router(name, room, pool, compile=compile_of(room))
    if name in ("base", "plain"):
        router.lanes.fixed.without_sites()
    began = time.perf_counter()
    router.compile(on_step=lambda done, of: print(f"    compiling {name}: {done} of {of}", flush=True))
    return router, time.perf_counter() - began


def built_of(name: str, room: Room, pool: PoolView, work: Workload) -> tuple[list[Contender], float]:
    """A contender, ready, with others that need no more compiling; and the seconds that it took.

    Raises:
        RuntimeError: its steps are not the compiled ones.
    """
    if name == "transformers":
        one = by_transformers(name, room, room.twin(), work, cache_implementation="static")
        began = time.perf_counter()
        one.run(work.new_tokens)
        one.run(work.new_tokens)
        return [one], time.perf_counter() - began
    router, seconds = router_of(name, room, pool)
    more = ("base_rows",) if name == "hilora" else ()
    made = [by_hilora(each, room, pool, work, router, bare=each in BARE) for each in (name, *more)]
    for one in made:
        before = router.lanes.fixed.taken
        one.run(3)
        if router.lanes.fixed.taken < before + 2:
            raise RuntimeError(f"the steps of {one.name} are not the compiled ones")
    return made, seconds


def batch(sites: str, room: Room) -> Rows:
    """Compiling of each contender, then all timed, then profiles; whoever cannot be compiled is told of."""
    pool = room.pool(SITES[sites])
    work, ready = room.work(pool), list[Contender]()
    for name in CONTENDERS[sites]:
        try:
            found, seconds = built_of(name, room, pool, work)
        except Exception as error:  # noqa: BLE001  # the others go on
            yield {"sites": sites, "contender": name, "wrong": [f"{type(error).__name__}: {error}"[:500]]}
            continue
        ready += found
        yield {"sites": sites, "contender": name, "compile_s": round(seconds, 1)}
    yield timed(room, ready, work, 2 * room.size.rounds) | {"sites": sites}
    for one in ready:
        row = profiled(room, one) | {"sites": sites}
        if room.on_card and one.name != "transformers" and (count := row["step"]["launches"]) > MOST_LAUNCHES:
            row["wrong"] = [f"{one.name} launches {count:.0f} times a step: no graph is replayed"]
        yield row
    del ready
    free(room)


def second(room: Room) -> Rows:
    """The same compiling in a new process, which finds torch's cache on disk."""
    began = time.perf_counter()
    command = [sys.executable, str(SCRIPT), "--second", str(room.pool().path), "--seed", str(room.seed)]
    command += ["--device", str(room.device), *(["--tiny"] if room.size.name == "tiny" else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode:
        yield {"wrong": [done.stderr[-500:]]}
        return
    whole = time.perf_counter() - began
    yield json.loads(done.stdout.splitlines()[-1]) | {"process_s": round(whole, 1)}


def in_second(room: Room, pool: Path) -> dict[str, float]:
    """What the new process does."""
    began = time.perf_counter()
    room.twin()
    loaded = time.perf_counter()
    _, seconds = router_of("hilora", room, Pool.open(pool))
    return {"load_s": round(loaded - began, 1), "compile_s": round(seconds, 1)}


MEASUREMENTS = {"compiled, q and v": partial(batch, "q and v"), "second start": second}
MORE = {"compiled, all seven": partial(batch, "all seven")}
