"""Who is timed: hilora, the base model, and PEFT's ways to serve adapters, all on the same weights.

    base            the model alone
    hilora          each prompt routed (embedding included) among all adapters of the pool
    pinned          the same, but that a prompt may use one adapter only: as many in the batch as were asked for
    oracle          not routed: each prompt's own adapter, whole
    arrow           our Arrow over the adapters of the bench
    peft_single     PEFT, one unmerged adapter for all rows
    peft_mixed      PEFT, `adapter_names`: one adapter per row
    peft_arrow      PEFT's Arrow over the adapters of the bench

Who chooses among all adapters is compared with who does (`hilora` with `peft_arrow`), who is given one with who is
(`pinned` and `oracle` with `peft_single` and `peft_mixed`). `oracle` and `peft_mixed` compute the same function, as
do `arrow` and `peft_arrow`: their logits are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hilora.bench.stage import Contender, Stage, first_logits, fixed, padded
from hilora.bench.theirs import Exports, peft_arrow, peft_mixed, peft_single
from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.planner import Planner

CONTENDERS = ("base", "hilora", "pinned", "oracle", "arrow", "peft_single", "peft_mixed", "peft_arrow")
TWINS = {("oracle", "peft_mixed"): 0.0, ("arrow", "peft_arrow"): 0.05}
"""Pairs that compute the same function -> how far apart they may be at least: PEFT finds Arrow's prototypes by 15
steps of power iteration, not exactly."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Largest mean difference of twins' logits, in standard deviations of the logits."""


@contextmanager
def contenders(stage: Stage, wanted: Sequence[str]) -> Iterator[list[Contender]]:
    """Build the wanted ones; PEFT's models are gone afterwards.

    Raises:
        InputError: one needs PEFT, which is not installed; or Arrow adapters of different ranks.
    """
    ours = {
        "base": lambda: _ours("base", stage, stage.planner_of("base")),
        "hilora": lambda: _ours("hilora", stage, stage.planner),
        "pinned": lambda: _ours("pinned", stage, stage.planner, allow=[[name] for name in stage.work.adapters]),
        "oracle": lambda: _ours("oracle", stage, stage.planner_of("oracle"), labels=list(stage.work.adapters)),
        "arrow": lambda: _ours("arrow", stage, stage.planner_of("arrow"), allow=list(stage.names)),
    }
    with TemporaryDirectory(prefix="hilora-bench-") as folder:
        exported = Exports(stage.pool, Path(folder), stage.model.dtype)
        theirs = {
            "peft_single": lambda: peft_single(stage, exported),
            "peft_mixed": lambda: peft_mixed(stage, exported),
            "peft_arrow": lambda: peft_arrow(stage, exported),
        }
        yield [(ours | theirs)[name]() for name in wanted]


def check_twins(built: Sequence[Contender]) -> dict[str, float]:
    """Compare contenders that should compute the same.

    Returns:
        "one = other" -> mean absolute difference of their logits, in standard deviations.

    Raises:
        InputError: they do not.
    """
    by_name = {each.name: each for each in built}
    found = {}
    for (one, other), least in TWINS.items():
        if one in by_name and other in by_name:
            left, right = by_name[one].logits(), by_name[other].logits()
            gap = float((left.double() - right.double()).abs().mean() / right.double().std())
            limit = max(least, TOLERANCE.get(left.dtype, 0.15))
            if not gap <= limit:
                raise InputError(
                    f"{one} and {other} should compute the same, and differ by {gap:.3g} standard deviations "
                    f"(at most {limit:g} for {left.dtype}). Their times would mean nothing."
                )
            found[f"{one} = {other}"] = gap
    return found


def _ours(name: str, stage: Stage, planner: Planner, **route: Any) -> Contender:
    router = HiLoRA(stage.model, stage.tokenizer, planner, packed=True)
    prompts = list(stage.work.prompts)

    def run(new_tokens: int) -> object:
        return router.generate(prompts, batch_size=len(prompts), **fixed(new_tokens), **route)

    def logits() -> Tensor:
        routed = planner.route(prompts, **route)
        ids, mask = padded(stage)
        with router.attached(routed, range(len(prompts))), torch.inference_mode():
            return first_logits(stage.model, ids, mask)

    return Contender(name, run, logits)
