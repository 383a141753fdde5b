"""Pools and states that a newer hilora has written: refused in words that say what to do, and nothing is changed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hilora.errors import HiloraError, MismatchError
from hilora.pool import Pool
from hilora.serve.state import State
from hilora.serve.state_read import ReadState
from soaking.made import ROOT, bench

Change = Callable[[Path], Any]
KNOWN = {"note": "for people", "unheard-of": [{"deep": {"er": 1.0}}]}


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Each part of a pool, from the future and from the past."""
    with bench(home / "bench") as made:
        made.pool.renew_epoch()
        State(made.pool.path).add_token("acme", ["use"])
        yield later(made, home)
        yield unknown(made, home)
    yield earlier(home)


def manifest(pool: Path, **fields: Any) -> None:
    """Change fields of a manifest."""
    path = pool / "pool.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def of_state(pool: Path, number: int) -> None:
    """Give a state another format."""
    with contextlib.closing(sqlite3.connect(pool / "serve" / "state.sqlite")) as made:
        made.execute(f"PRAGMA user_version={number}")
        made.execute("CREATE TABLE IF NOT EXISTS of_the_future (x)")
        made.execute("PRAGMA journal_mode=DELETE")
        made.commit()


def of_epoch(pool: Path) -> None:
    """An epoch as another version would make it, under a name that is right."""
    from safetensors.torch import load_file, save_file

    from hilora.pool.epochs import _key

    (path,) = (pool / "epochs").glob("*.safetensors")
    kept = load_file(path)
    name = sorted(kept)[0]
    kept[f"{name}|of the future"] = kept.pop(name)
    key = _key(kept)
    save_file(kept, path.with_name(f"{key}.safetensors"))
    path.unlink()
    read = json.loads((pool / "pool.json").read_text())
    manifest(pool, epoch=read["epoch"] | {"key": key})


LATER: dict[str, tuple[Change, Callable[[Path], Any]]] = {
    "the manifest's format": (lambda pool: manifest(pool, format=3), Pool.open),
    "what it needs": (lambda pool: manifest(pool, needs=["tenants", "telepathy"]), Pool.open),
    "the epoch": (of_epoch, lambda pool: Pool.open(pool).epoch),
    "the state": (lambda pool: of_state(pool, 2), State),
    "the state, read only": (lambda pool: of_state(pool, 2), ReadState),
}


def files(folder: Path) -> dict[str, bytes]:
    """All there is, but for the locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def later(made: Any, home: Path) -> dict[str, Any]:
    """A part of a newer version."""
    counts, wrong = {"refused": 0}, list[str]()
    for what, (change, opened) in LATER.items():
        pool = Path(shutil.copytree(made.pool.path, home / "later"))
        change(pool)
        before = files(pool)
        try:
            opened(pool)
            wrong.append(f"{what}: it was opened")
        except MismatchError as error:
            counts["refused"] += 1
            if not any(word in str(error) for word in ("pip install --upgrade", "Make a new one")):
                wrong.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001
            wrong.append(f"{what}: {error!r}")
        if files(pool) != before:
            wrong.append(f"{what}: something was changed")
        shutil.rmtree(pool)
    return {"what": "of a newer version", "counts": counts, "wrong": wrong}


def unknown(made: Any, home: Path) -> dict[str, Any]:
    """Fields that nobody here knows, of pool, adapter, embedder and epoch, last through all changes."""
    pool, wrong = Path(shutil.copytree(made.pool.path, home / "unknown")), list[str]()
    read = json.loads((pool / "pool.json").read_text())
    read["adapters"][0] |= KNOWN
    manifest(pool, **read, unheard={"of": [1, 1.0, True]})
    manifest(pool, embedder=read["embedder"] | {"voice": 1}, epoch=read["epoch"] | {"mood": 2})
    opened, name = Pool.open(pool), read["adapters"][0]["name"]
    changes: dict[str, Callable[[], Any]] = {
        "disable": lambda: opened.enable(name, False),
        "add": lambda: opened.add("x", made.folder(9), made.texts("delta", 9), made.embedder),
        "replace": lambda: opened.add("x", made.folder(8), made.texts("delta", 8), made.embedder, replace=True),
        "remove": lambda: opened.remove("x"),
        "prune": opened.prune,
    }
    for what, change in changes.items():
        change()
        now = json.loads((pool / "pool.json").read_text())
        (line,) = [each for each in now["adapters"] if each["name"] == name]
        kept = (now.get("unheard"), now["embedder"].get("voice"), now["epoch"].get("mood"))
        if kept != ({"of": [1, 1.0, True]}, 1, 2) or {key: line.get(key) for key in KNOWN} != KNOWN:
            wrong.append(f"{what}: {kept} {line}")
    return {"what": "with unknown fields", "counts": {"changes": len(changes)}, "wrong": wrong}


def earlier(home: Path) -> dict[str, Any]:
    """A pool of format 1, and a state from before there were formats."""
    counts, wrong = {"read": 0}, list[str]()
    pool = Path(shutil.copytree(ROOT / "tests/pool/format1/pool", home / "earlier"))
    before = files(pool)
    try:
        opened = Pool.open(pool)
        wrong += [f"{entry.name}: {why}" for entry, why in opened.check() if why]
        counts["read"] += 1
    except HiloraError as error:
        wrong.append(f"format 1: {error}")
    if files(pool) != before:
        wrong.append("format 1: reading has changed something")
    state = State(pool)
    secret, _ = state.add_token("acme", ["use"])
    with contextlib.closing(sqlite3.connect(pool / "serve" / "state.sqlite")) as made:
        made.execute("PRAGMA user_version=0")
        made.commit()
    try:
        counts["read"] += State(pool).token(secret) is not None
    except HiloraError as error:
        wrong.append(f"a state without a format: {error}")
    if counts["read"] != 2:
        wrong.append("the token is gone")
    return {"what": "of an older version", "counts": counts, "wrong": wrong}
