"""Training data of a pool's adapters: DIR/<adapter>.jsonl, some examples of each, mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError
from hilora.jsonl import numbered_lines
from hilora.train.data import Example, encode_examples, read_lines
from hilora.train.recipe import Shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TaskExample(Example):
    """An example, and which adapter's task it is of."""

    task: str


def read_tasks(folder: Path, names: Sequence[str]) -> dict[str, Rows]:
    """Adapter name -> its training lines, for those that have a file.

    Raises:
        InputError: none has one, or a file has a bad line.
    """
    found = {name: read_lines(folder / f"{name}.jsonl") for name in names if (folder / f"{name}.jsonl").exists()}
    if not found:
        raise InputError(f"{folder} has no <adapter>.jsonl for any adapter of the pool, e.g. {names[0]}.jsonl.")
    return found


def read_clusters(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Adapter name -> the "cluster" of the first line of its file; its own name where the line has none."""
    clusters = {}
    for name in names:
        (_, first), *_ = numbered_lines(folder / f"{name}.jsonl")
        clusters[name] = str(json.loads(first).get("cluster", name))
    return clusters


def draw(tasks: Mapping[str, Rows], per_task: int, seed: int) -> dict[str, Rows]:
    """So many rows of each task, drawn by seed and name."""
    import numpy as np

    drawn = {}
    for name, rows in tasks.items():
        order = np.random.default_rng([seed, *name.encode()]).permutation(len(rows))[:per_task]
        drawn[name] = [rows[i] for i in order]
    return drawn


def tasks_of(names: Collection[str], recipe: Shared) -> list[str]:
    """The tasks that are trained on: a share of them, but at least two, drawn by seed."""
    import numpy as np

    order = np.random.default_rng(recipe.seed).permutation(sorted(names))
    return sorted(order[: max(2, round(recipe.share * len(order)))].tolist())


def encode_tasks(tasks: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[TaskExample]:
    """Examples of all tasks that are not too long.

    Raises:
        InputError: none fits.
    """
    found = [
        TaskExample(example.prompt, example.completion, name)
        for name, rows in tasks.items()
        for example in encode_examples(rows, tokenizer)
        if len(example) <= max_tokens
    ]
    if not found:
        names = ", ".join(tasks)
        raise InputError(f"No training line of {names} fits into {max_tokens} tokens. Raise --max-tokens.")
    return found


def hash_tasks(tasks: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """sha256 of the rows, task by task."""
    digest = hashlib.sha256()
    for name in sorted(tasks):
        for row in tasks[name]:
            digest.update(json.dumps([name, row["inputs"], row["targets"]]).encode())
    return digest.hexdigest()
