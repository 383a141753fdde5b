"""Minimising without gradients: CMA-ES over a few weights, with a log of what was evaluated, from which it goes on.

    minimise  loss(w) + l1 * mean |w_i|      over w in [-bound, bound]^n, starting from 0

What a loss costs is what a search costs: each evaluation is written down at once, and none is made twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hilora.errors import HiloraError, InputError
from hilora.train.recipe import HubRecipe

Loss = Callable[[Sequence[float]], float]


def search(
    loss: Loss, count: int, recipe: HubRecipe, log: Path | None = None, key: str = ""
) -> tuple[list[float], float]:
    """The best weights found, and their loss with the L1 term.

    Args:
        loss: weights -> mean loss of the examples.
        count: number of weights.
        recipe: how.
        log: JSON Lines of what was evaluated; what it holds already is taken from there, so that a run goes on.
        key: of everything else that the loss depends on: data, adapters, base. A log of another is refused.

    Raises:
        HiloraError: pycma is missing.
        InputError: the log is of another search.
    """
    try:
        import cma
    except ImportError as error:
        raise HiloraError("LoRAHub searches with pycma. Run: pip install 'hilora[train]'") from error
    known = _read_log(log, {"key": key, "recipe": asdict(recipe)})
    options = {"bounds": [-recipe.bound, recipe.bound], "seed": recipe.seed + 1, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([0.0] * count, recipe.sigma, options)
    best, lowest, done = [0.0] * count, float("inf"), 0
    while done < recipe.evaluations:
        asked = strategy.ask()
        if done == 0:
            asked[0] = np.zeros(count)  # the base model itself is the first guess
        values = []
        for weights in asked:
            if done < len(known):
                value = float(known[done]["loss"])
            elif done < recipe.evaluations:
                value = loss(weights.tolist()) + recipe.l1 * float(np.abs(weights).mean())
                if log is not None:
                    with log.open("a") as lines:
                        lines.write(json.dumps({"weights": weights.tolist(), "loss": value}) + "\n")
            else:
                break
            done += 1
            values.append(value)
            if value < lowest:
                best, lowest = weights.tolist(), value
        if len(values) == len(asked):
            strategy.tell(asked, values)
    return best, lowest


def _read_log(log: Path | None, header: dict[str, Any]) -> list[dict[str, Any]]:
    """What was evaluated already; a new log gets its first line. A line that was cut off is taken out."""
    if log is None:
        return []
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    first, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if first and json.loads(first) != json.loads(json.dumps(header)):
        raise InputError(f"{log} is of another search. Give the same data and options, or delete it to start again.")
    log.write_text("".join(line + "\n" for line in [json.dumps(header), *lines]), encoding="utf-8")
    return [json.loads(line) for line in lines]
