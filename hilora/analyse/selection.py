"""How many adapters and ROCs a method selects, for prompts whose own adapter may be used and for others.

From the rows of `hilora evaluate tasks`: "seen" means that the row's own adapter was in the pool and not masked.
HiLoRA section 4.3 says that few adapters are activated for seen tasks, and more for unseen ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.report import Results

Numbers = dict[str, Any]
COUNTED = {"adapters": "adapters", "ROCs": "rocs"}
"""As shown -> as rows name it."""


def read_results(paths: Sequence[Path]) -> Results:
    """Results files of `hilora evaluate tasks`.

    Raises:
        InputError: a file that cannot be read, or is something else.
    """
    try:
        return Results(paths)
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        listed = ", ".join(map(str, paths))
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__} {error}."
        raise InputError(
            f"Cannot read {listed}: {why} Expected results, one JSON line a row, of: "
            f"hilora evaluate tasks --json FILE"
        ) from error


def measured_methods(results: Results) -> list[str]:
    """Labels of all methods of a results file, in its order."""
    return list(dict.fromkeys(method for _, method in results.rows))


def count_selected(results: Results, method: str, setting: str | None = None) -> dict[str, Numbers]:
    """Label ("iid, seen") -> "rows", "seen", and for adapters and ROCs the "counts" (number -> rows) and "mean".

    Args:
        results: from `read_results`.
        method: a label in them.
        setting: keep to this one.

    Raises:
        UnknownNameError: no such method or setting.
        InputError: rows that do not say what was selected.
    """
    methods = measured_methods(results)
    if method not in methods:
        raise UnknownNameError("method", method, methods)
    settings = [name for name, own in results.rows if own == method]
    if setting is not None and setting not in settings:
        raise UnknownNameError("setting", setting, settings)
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for name in settings if setting is None else [setting]:
        for row in results.rows[name, method].values():
            if missing := {"seen", *COUNTED.values()} - row.keys():
                raise InputError(
                    f"Row {row.get('id')!r} of method {method!r} has no {sorted(missing)[0]!r}; expected rows of "
                    f"hilora evaluate tasks. Measure again with this version."
                )
            groups.setdefault((name, bool(row["seen"])), []).append(row)
    found: dict[str, Numbers] = {}
    for (name, seen), rows in sorted(groups.items(), key=lambda pair: (not pair[0][1], pair[0][0])):
        label = f"{name}, {'seen' if seen else 'unseen'}"
        found[label] = {"rows": len(rows), "seen": seen}
        for shown, field in COUNTED.items():
            values = [int(row[field]) for row in rows]
            counts = {str(value): times for value, times in sorted(Counter(values).items())}
            found[label][shown] = {"mean": round(sum(values) / len(values), 4), "counts": counts}
    return found
