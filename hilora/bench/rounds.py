"""Timing: rounds in which every contender has a turn, so that the machine's moods hit all alike; medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from hilora.bench.stage import Contender

T = TypeVar("T")
LEAST = 1e-4
"""Seconds to which reports round, and the least that a difference of two of them counts as."""
Times = dict[str, dict[str, list[float]]]
"""Contender -> "prefill" (the first new token) and "whole" -> seconds of each round."""
RATIOS = {
    "hilora_over_base": ("hilora", "base"),
    "pinned_over_base": ("pinned", "base"),
    "pinned_over_peft_single": ("pinned", "peft_single"),
    "pinned_over_peft_mixed": ("pinned", "peft_mixed"),
    "hilora_over_peft_arrow": ("hilora", "peft_arrow"),
    "arrow_over_peft_arrow": ("arrow", "peft_arrow"),
}
"""Throughput of the first over that of the second."""


def stopwatch(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Seconds that a call takes; on CUDA by events, around all that it has queued."""

    def on_cpu(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def on_cuda(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return on_cuda if device.type == "cuda" else on_cpu


def turns(each: Sequence[T], rounds: int) -> Iterator[tuple[T, bool]]:
    """(whose turn it is, whether it counts): the first round warms up, and every other one goes backwards."""
    for number in range(rounds + 1):
        for one in each if number % 2 == 0 else reversed(each):
            yield one, number > 0


def time_rounds(
    built: Sequence[Contender],
    *,
    rounds: int,
    new_tokens: int,
    device: torch.device,
    on_turn: Callable[[int], None] = lambda done: None,
) -> Times:
    """Time every contender in every round; one round more warms up, and every other one goes backwards.

    Args:
        built: the contenders.
        rounds: that count.
        new_tokens: of each answer, at least 2: the first is prefill.
        device: of the model.
        on_turn: called with the turns done, of len(built) * (rounds + 1).
    """
    timed = stopwatch(device)
    times: Times = {each.name: {"prefill": [], "whole": []} for each in built}
    for done, (each, counts) in enumerate(turns(built, rounds), 1):
        prefill, whole = (timed(partial(each.run, tokens)) for tokens in (1, new_tokens))
        if counts:
            times[each.name]["prefill"].append(prefill)
            times[each.name]["whole"].append(whole)
        on_turn(done)
    return times


def decode(times: Mapping[str, Sequence[float]]) -> list[float]:
    """Seconds after the first new token, by round: two runs apart, of which noise may make less than nothing.

    No round counts as less than `LEAST`, so that a speed can always be told.
    """
    return [max(whole - prefill, LEAST) for whole, prefill in zip(times["whole"], times["prefill"], strict=True)]


def in_rounds(times: Times, one: str, other: str, part: str) -> list[float]:
    """Throughput of one contender over that of another in each round, in which the machine had one mood."""
    pairs = zip(seconds_of(times[one], part), seconds_of(times[other], part), strict=True)
    return [theirs / ours for ours, theirs in pairs]


def ratios(times: Times) -> dict[str, dict[str, float]]:
    """Parts "whole", "prefill" and "decode" -> medians over the rounds of `RATIOS`, of contenders that were timed."""
    found: dict[str, dict[str, float]] = {"whole": {}, "prefill": {}, "decode": {}}
    for name, pair in RATIOS.items():
        if all(one in times for one in pair):
            for part, values in found.items():
                values[name] = round(statistics.median(in_rounds(times, *pair, part)), 4)
    return found


def seconds_of(times: Mapping[str, list[float]], part: str) -> list[float]:
    """Seconds by round of "prefill", "decode" or "whole"."""
    return decode(times) if part == "decode" else times[part]


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most."""
    picks = (("median", statistics.median), ("least", min), ("most", max))
    return {name: round(pick(values), digits) for name, pick in picks}


def report(times: Times, tokens: Mapping[str, int]) -> list[tuple[str, ...]]:
    """A table: the first row is the heading.

    Args:
        times: from `time_rounds`.
        tokens: "prompt" and "new", of the whole batch.
    """
    base = statistics.median(times["base"]["whole"]) if "base" in times else None
    rows: list[tuple[str, ...]] = [
        ("contender", "seconds (least to most)", "of base", "prompt tokens/s", "new tokens/s")
    ]
    for name, each in times.items():
        whole, after = statistics.median(each["whole"]), statistics.median(decode(each))
        rows.append(
            (
                name,
                f"{whole:.2f} ({min(each['whole']):.2f} to {max(each['whole']):.2f})",
                "-" if base is None else f"{base / whole:.3f}",
                f"{tokens['prompt'] / statistics.median(each['prefill']):.0f}",
                f"{tokens['new'] / after:.0f}",
            )
        )
    return rows


def rounded(times: Times) -> dict[str, Any]:
    """For JSON."""
    return {
        name: {part: [round(s, 4) for s in seconds] for part, seconds in each.items()} for name, each in times.items()
    }
