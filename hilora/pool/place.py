"""Where a base or an embedder lies, recorded so that a pool works from any working folder and after a move.

What is a folder is recorded under "at", in the order in which it is looked for: relative to the pool, if it lies in
the pool or beside it (anywhere in the folder that holds the pool); absolute, if it does not lie in the pool. Thus a
pool may move with its neighbours or without them. A name ("smollm2-135m", or one on the Hub) stays a name.
"""

from __future__ import annotations

import json
import os.path
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hilora.base.embed import EMBEDDERS, EmbedderInfo
from hilora.base.embedded import BASES
from hilora.base.fingerprint import BaseInfo
from hilora.pool.manifest import known

AT = "at"
_MARKS = ("config.json", "modules.json")


def write_base(base: BaseInfo, pool: Path) -> dict[str, Any]:
    """A base as a pool records it."""
    return {**json.loads(base.to_json()), **({} if base.name in BASES else _at(base.name, pool))}


def read_base(raw: Any, pool: Path) -> BaseInfo:
    """Inverse of `write_base`; what lies in a folder is named by the folder's path.

    Raises:
        KeyError, TypeError, ValueError: it does not say what it should.
    """
    return BaseInfo.from_json(json.dumps(_read(raw, BaseInfo, pool)))


def write_embedder(embedder: EmbedderInfo, pool: Path) -> dict[str, Any]:
    """An embedder as a pool records it."""
    return {**asdict(embedder), **({} if embedder.name in EMBEDDERS else _at(embedder.name, pool))}


def read_embedder(raw: Any, pool: Path) -> EmbedderInfo:
    """Inverse of `write_embedder`, as `read_base` is."""
    return EmbedderInfo(**_read(raw, EmbedderInfo, pool))


def _at(name: str, pool: Path) -> dict[str, list[str]]:
    """Where the folder of a model lies; nothing if the name is no folder."""
    if not any((Path(name) / mark).is_file() for mark in _MARKS):
        return {}
    path, home = Path(name).absolute(), pool.resolve()
    place = path.resolve() if path.name == ".." else path.parent.resolve() / path.name  # a link is kept
    near = [Path(os.path.relpath(place, home)).as_posix()] if place.is_relative_to(home.parent) else []
    return {AT: near if place.is_relative_to(home) else [*near, str(place)]}


def _read(raw: Any, kind: type[BaseInfo | EmbedderInfo], pool: Path) -> dict[str, Any]:
    found = known(raw, [each.name for each in fields(kind)])
    if AT in raw:
        if not (isinstance(raw[AT], list) and raw[AT] and all(isinstance(place, str) for place in raw[AT])):
            raise TypeError(f"{AT}: expected a list of folders, got {raw[AT]!r:.60}")
        home = pool.resolve()
        places = [os.path.normpath(home / place) for place in raw[AT]]
        found["name"] = next((place for place in places if Path(place).is_dir()), places[0])
    return found
