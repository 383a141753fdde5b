"""Contenders timed in interleaved rounds, and what a decoding step of each consists of."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpuing.room import Room
from hilora.base.prompts import encode_prompts
from hilora.bench.rounds import rounded, seconds_of, time_rounds
from hilora.bench.stage import Contender
from hilora.bench.workload import Workload

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
STEPS = 4
"""Decoding steps in a profile."""
SHOWN = 5
"""Kernels that a profile names, those that take longest."""


def free(room: Room) -> None:
    """Give back memory that nobody uses."""
    if room.on_card:
        torch.cuda.empty_cache()


def timed(room: Room, built: Sequence[Contender], work: Workload, rounds: int) -> dict[str, Any]:
    """Seconds of every contender in every round, and medians in milliseconds: the first token, and each later one."""
    times = time_rounds(built, rounds=rounds, new_tokens=work.new_tokens, device=room.device)
    medians = {}
    for name, each in times.items():
        after = statistics.median(seconds_of(each, "decode")) / (work.new_tokens - 1)
        medians[name] = {
            "prefill_ms": round(1e3 * statistics.median(each["prefill"]), 2),
            "step_ms": round(1e3 * after, 3),
            "whole_ms": round(1e3 * statistics.median(each["whole"]), 1),
        }
    prompt = sum(map(len, encode_prompts(list(work.prompts), room.tokenizer)))
    return {
        "batch": len(work.prompts),
        "distinct": len(work.distinct),
        "new_tokens": work.new_tokens,
        "prompt_tokens": prompt,
        "ms": medians,
        "seconds": rounded(times),
    }


def profiled(room: Room, one: Contender) -> dict[str, Any]:
    """Kernels, launches, milliseconds of the device and operations of one decoding step, and of the first token."""
    first, all_of = (_trace(room, one.run, tokens) for tokens in (1, 1 + STEPS))
    step = {name: round((all_of[name] - first[name]) / STEPS, 3) for name in first if name != "by_kernel"}
    kernels: Counter[str] = Counter({name: ms / STEPS for name, ms in all_of["by_kernel"].items()})
    kernels.subtract({name: ms / STEPS for name, ms in first["by_kernel"].items()})
    longest = {name[:60]: round(ms, 3) for name, ms in kernels.most_common(SHOWN)}
    prefill = {name: value for name, value in first.items() if name != "by_kernel"}
    return {"contender": one.name, "step": step | {"longest": longest}, "prefill": prefill}


def _trace(room: Room, run: Callable[[int], object], tokens: int) -> dict[str, Any]:
    """Of one call: kernels, copies and their milliseconds (on a CPU: operations that call no other), and launches."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if room.on_card else [])]
    everywhere = _ExperimentalConfig(profile_all_threads=True)  # the engine steps in a thread of its own
    with profile(activities=activities, acc_events=True, experimental_config=everywhere) as found:
        run(tokens)
    events = list(found.events() or ())
    if room.on_card:
        work = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    else:
        work = [e for e in events if e.name.startswith("aten::") and not e.cpu_children]
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in work)
    by_kernel: Counter[str] = Counter()
    for event in work:
        by_kernel[event.name] += event.time_range.elapsed_us() / 1e3
    launches = sum(event.name.startswith(LAUNCHES) for event in events)
    return {
        "kernels": len(work) - copies,
        "copies": copies,
        "kernel_ms": round(sum(by_kernel.values()), 3),
        "launches": launches,
        "by_kernel": dict(by_kernel),
    }
