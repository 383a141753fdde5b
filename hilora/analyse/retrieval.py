"""Top-k accuracy of routing as curves, from the JSON of `hilora evaluate routing`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilora.errors import InputError, UnknownNameError

Found = Mapping[str, Mapping[str, Any]]
"""Method -> "top1", "top3", ..., "intervals", "n"."""


def read_routing(path: Path) -> Found:
    """The methods of one result.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        found: Found = json.loads(path.read_text(encoding="utf-8"))["methods"]
        if not found or not all(_tops(of) for of in found.values()):
            raise KeyError("top1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no result of routing ({type(error).__name__}: {error}). Expected the file of: "
            f"hilora evaluate routing --json FILE"
        ) from error
    return found


def against_k(read: Mapping[Path, Found], methods: Sequence[str] | None = None) -> dict[str, Any]:
    """What `figures.retrieval` needs for curves over k, one for each method of each file.

    Raises:
        UnknownNameError: a method that no file has.
    """
    curves = {}
    for path, found in read.items():
        for method in _chosen(read, methods):
            if method in found:
                label = method if len(read) == 1 else f"{path.stem}: {method}"
                curves[label] = _curve([(k, found[method], k) for k in _tops(found[method])])
    ticks = sorted({int(x) for curve in curves.values() for x in curve["x"]})
    return {"curves": curves, "across": "k (adapters)", "ticks": ticks, "what": _what(read, "the best k")}


def against_samples(
    read: Mapping[Path, Found], samples: Sequence[str], k: int, methods: Sequence[str] | None = None
) -> dict[str, Any]:
    """The same over the number of samples per adapter, one curve for each method.

    Args:
        read: a result for each number of samples.
        samples: the numbers, in the files' order.
        k: the top k to draw.
        methods: keep to these.

    Raises:
        InputError: not one number a file, or a k that was not measured.
        UnknownNameError: a method that no file has.
    """
    try:
        counts = [int(text) for text in samples]
    except ValueError as error:
        raise InputError(f"--samples are whole numbers with commas between; got {','.join(samples)!r}.") from error
    if len(counts) != len(read):
        raise InputError(
            f"--samples names {len(counts)} numbers for {len(read)} files; give the samples per adapter of each file."
        )
    curves = {}
    for method in _chosen(read, methods):
        points = []
        for count, (path, found) in sorted(zip(counts, read.items(), strict=True), key=lambda pair: pair[0]):
            if method in found:
                if k not in _tops(found[method]):
                    raise InputError(f"{path} has no top {k} of {method!r}; it has top {_tops(found[method])}.")
                points.append((k, found[method], count))
        curves[method] = _curve(points)
    best = "the best" if k == 1 else f"the best {k}"
    return {"curves": curves, "across": "samples per adapter (number)", "ticks": counts, "what": _what(read, best)}


def _what(read: Mapping[Path, Found], among: str) -> str:
    rows = sorted({int(of.get("n", 0)) for found in read.values() for of in found.values()})
    return f"How often is the right adapter among {among}? {rows[-1]} prompts"


def _tops(of: Mapping[str, Any]) -> list[int]:
    return sorted(int(name[3:]) for name in of if name.startswith("top") and name[3:].isdigit())


def _chosen(read: Mapping[Path, Found], methods: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(method for found in read.values() for method in found))
    for method in methods or ():
        if method not in known:
            raise UnknownNameError("method", method, known)
    return list(methods or known)


def _curve(points: Sequence[tuple[int, Mapping[str, Any], int]]) -> dict[str, list[float]]:
    """(k, numbers, x) of each point, in percent."""
    curve: dict[str, list[float]] = {
        "x": [float(x) for _, _, x in points],
        "y": [100 * of[f"top{k}"] for k, of, _ in points],
    }
    if all(f"top{k}" in of.get("intervals", {}) for k, of, _ in points):
        for end, name in enumerate(("low", "high")):
            curve[name] = [100 * of["intervals"][f"top{k}"][end] for k, of, _ in points]
    return curve
