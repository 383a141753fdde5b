"""Results as JSON Lines: what is written of a row, and what a results file already holds.

A file has lines of three kinds: {"setup"} for every run, {"item"} once per row of the data, and {"method"} for every
answer. Numbers, names and hashes; never a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hilora.errors import InputError
from hilora.evaluate.metrics import METRICS, most_frequent
from hilora.evaluate.rows import Row, answer_hash, short_hash
from hilora.jsonl import PACKED, plain_path, read_text
from hilora.methods.method import Method
from hilora.types import Choice, Completion

Line = dict[str, Any]
Key = tuple[str, str, str, str]
"""(method, setting, split, row id)."""
SAME = ("adapters", "ridge", "dtype", "quantised", "max_new_tokens", "seed", "part", "per_task")
"""What must be the same for all rows of a file."""
ANSWER = ("stats", "answer", "tokens", "finish", "seconds")
"""What a row's line says of its answer, the same for all rows that are served alike. All but the one for which it was
generated have "shared" in their line, so that its seconds count once."""
ROUTE_SHOWN = 5
"""Adapters of a row's route that are written down."""


def describe_row(row: Row) -> dict[str, Any]:
    """What a table needs of a row, without its texts."""
    return {
        "item": row.id,
        "task": row.task,
        "cluster": row.cluster,
        "prompt": short_hash(row.inputs),
        "reference": answer_hash(row.targets),
        "metrics": row.metrics,
    }


def describe_answer(row: Row, answer: Completion, seconds: float) -> Line:
    """What a row's line says of its answer: scores as sums of statistics, hashes."""
    scored = [name for name in row.metrics if name in METRICS]
    stats = {name: METRICS[name].row(answer.text, row.targets) for name in scored}
    return {
        "stats": {name: [round(value, 4) for value in values] for name, values in stats.items()},
        "answer": answer_hash(answer.text),
        "tokens": [answer.prompt_tokens, answer.completion_tokens],
        "finish": answer.finish_reason,
        "seconds": round(seconds, 4),
    }


def describe_route(choices: Sequence[Choice], method: Method) -> Line:
    """What a row's line says of its route."""
    rocs = sorted((choice.rocs for choice in choices), reverse=True)[: method.sparse]  # of one token
    return {
        "adapters": len(rocs),
        "rocs": sum(rocs) if method.active is None else min(sum(rocs), method.active),
        "route": [[c.name, round(c.score, 3), round(c.weight, 3), c.rocs] for c in choices[:ROUTE_SHOWN]],
    }


def read_answers(paths: Iterable[Path]) -> dict[str, Line]:
    """Digest of what a row was served with (`evaluate.served`) -> what its line says of the answer."""
    found = {}
    for path in paths:
        for text in read_text(path).splitlines():
            if '"served"' in text and text.endswith("}"):  # not a line that was cut off
                line = json.loads(text)
                if "method" in line and "served" in line:
                    found[line["served"]] = answer_part(line)
    return found


def answer_part(line: Line) -> Line:
    """What a row's line says of its answer, for other rows."""
    return {key: line[key] for key in ANSWER} | {"shared": True}


def check_plain(out: Path) -> None:
    """Refuse to append to an archive: a run that is killed must have lost nothing.

    Raises:
        InputError: the name is that of a packed file.
    """
    if out.suffix == PACKED:
        plain = plain_path(out)
        raise InputError(
            f"Rows cannot be appended to {out}, an archive by its name; they are written as plain lines, batch by "
            f"batch. Give --json {plain}, unpack what is there with gunzip first, and pack it when the run is done."
        )


def read_done(out: Path, header: Line) -> tuple[dict[Key, Line], set[str]]:
    """What a file holds: its rows by (method, setting, split, id), and the ids of its items.

    A line that was cut off in the middle of writing is taken out of the file.

    Raises:
        InputError: the file is something else, or was made with other adapters, models or generation settings.
    """
    check_plain(out)
    if not out.exists():
        return {}, set()
    text = read_text(out)
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        out.write_text(text, encoding="utf-8")
    try:
        rows = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise InputError(f"{out} is no JSON Lines file of results. Give another --json, or move it away.") from error
    for old in (r for r in rows if "setup" in r):
        if changed := [key for key in SAME if old.get(key) != header.get(key)]:
            raise InputError(
                f"{out} was made with another {', '.join(changed)}: such rows cannot stand in one table. "
                f"Give another --json, or move the file away."
            )
        known = old.get("parts", {})
        if changed := [label for label, part in header.get("parts", {}).items() if known.get(label, part) != part]:
            raise InputError(
                f"{out} has rows of {', '.join(changed)} from before it was trained again: such rows cannot stand in "
                f"one table. Give another --json, or move the file away."
            )
    done = {(r["method"], r["setting"], r["split"], r["id"]): r for r in rows if "method" in r}
    return done, {r["item"] for r in rows if "item" in r}


def constant_answers(rows: Sequence[Row]) -> dict[str, str]:
    """Task -> its most frequent reference among these rows: what a model may win by without reading its prompt.

    Args:
        rows: of training data, not those that are scored: an answer chosen on few rows fits them too well.
    """
    references: dict[str, list[str]] = {}
    for row in rows:
        references.setdefault(row.task, []).append(row.targets)
    return {task: most_frequent(of_task) for task, of_task in references.items()}
