"""Pages of numbers that are measured once, kept as JSON, and told in words and tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hilora.base.embed import DEFAULT_EMBEDDER

Numbers = dict[str, Any]


def numbers_main(
    doc: str | None,
    name: Path,
    measure: Callable[[Path, str], Numbers],
    report: Callable[[Numbers], str],
    to_json: Callable[[Numbers], str],
) -> None:
    """The command line of a script that makes `name`.json of (data, embedder), if given data, and of it `name`.md."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--embedder", default=DEFAULT_EMBEDDER)
    parser.add_argument("--out", type=Path, default=name.parent)
    args = parser.parse_args()
    numbers = args.out / f"{name.name}.json"
    if args.data:
        args.out.mkdir(parents=True, exist_ok=True)
        numbers.write_text(to_json(measure(args.data, args.embedder)) + "\n")
    text = report(json.loads(numbers.read_text()))
    numbers.with_suffix(".md").write_text(text)
    print(text)


def show(done: int, total: int) -> None:
    """Texts embedded so far, on stderr."""
    print(f"\r{done} of {total} texts embedded", end="\n" if done == total else "", file=sys.stderr)
