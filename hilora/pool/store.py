"""Files of a pool: each is written whole or not at all.

    POOL/pool.json                    the manifest: the only file that ever changes, replaced atomically
    POOL/pool.json.format1            the last one that an older hilora could read, if it wrote one
    POOL/base.json                    the base model's modules and sketch, written when the pool is made
    POOL/adapters/<hash>.safetensors  one adapter's factors, named by content, never changed
    POOL/canonical/<hash>.safetensors its canonical ROCs, if somebody has worked them out already
    POOL/samples/<hash>.safetensors   embeddings of one adapter's samples, likewise
    POOL/statistics/<key>.safetensors what was learned from all of them (`statistics`); may be missing
    POOL/epochs/<key>.safetensors     what they share, once and for all (`epochs`), if the manifest names one
    POOL/leases/<id>.lock             held by those who serve the pool (`lease`)
    POOL/serve/                       what a server keeps beside it: tokens, uploads (`serve.state`)

A crash leaves at most files that no manifest names; `prune` deletes them.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from hilora.errors import MismatchError, PoolError
from hilora.pool.peft import content_hash
from hilora.pool.view import Entry
from hilora.types import Factors

ENCODE = json.JSONEncoder().encode
FORMAT = 2
ABILITIES = frozenset({"tenants"})
"""What a manifest may require of its readers, by words under "needs"; each is a promise that it is honoured.

    tenants    adapters with a tenant are routed to only by callers who know of them
"""
MANIFEST = "pool.json"
BASE = "base.json"
ADAPTERS = "adapters"
CANONICAL = "canonical"
SAMPLES = "samples"
STATISTICS = "statistics"
EPOCHS = "epochs"
HASH = "sha256"
"""Of a file's tensors, where its name does not say it."""

FULL = "No space is left on the disk; free some and try again. Nothing was changed."
_REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "The disk quota is used up; free some and try again. Nothing was changed.",
    errno.EROFS: "The file system is read-only; copy the pool to change it.",
    errno.EACCES: "You may not write there; copy the pool to change it.",
    errno.EPERM: "You may not write there; copy the pool to change it.",
}


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the operating system's refusals into PoolErrors with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}.")
        raise PoolError(f"Cannot {doing}: {remedy}") from error


@contextmanager
def alone(pool: Path) -> Iterator[None]:
    """Change a pool: others who want to wait. What the operating system refuses is a PoolError."""
    from filelock import FileLock

    with explained(f"change the pool {pool}"), FileLock(pool / ".lock"):
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that readers see complete or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # noqa: PTH101
        os.replace(partial, path)  # noqa: PTH105
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is whole and in its place; only a power cut could still undo the change
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_manifest(pool: Path) -> bytes:
    """The manifest of a pool folder, as it is written.

    Raises:
        PoolError: no pool there.
    """
    try:
        return (pool / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise PoolError(
            f"{pool} is no pool: it has no {MANIFEST}. Make one with: hilora pool add NAME FOLDER --pool {pool}"
        ) from error
    except NotADirectoryError as error:
        raise PoolError(f"{pool} is a file; a pool is a folder with a {MANIFEST}.") from error
    except OSError as error:
        raise _unreadable(pool, error) from error


def parse_manifest(pool: Path, text: bytes) -> dict[str, Any]:
    """What a manifest says.

    Raises:
        PoolError: it is damaged.
        MismatchError: written by a newer version.
    """
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["format"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format {version!r:.60}")
        needs = manifest.get("needs", []) if version <= FORMAT else []
        if not (isinstance(needs, list) and all(isinstance(word, str) for word in needs)):
            raise TypeError(f"needs: expected a list of words, got {needs!r:.60}")
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(pool, error) from error
    if version > FORMAT:
        why = f"format {version}, this version reads {FORMAT}"
    elif unknown := sorted(set(needs) - ABILITIES):
        why = f"it needs {', '.join(unknown)}, unknown to this version"
    else:
        return manifest
    raise MismatchError(f"{pool} was written by a newer hilora ({why}). Run: pip install --upgrade hilora")


def write_manifest(pool: Path, head: Mapping[str, Any], entries: Iterable[Entry]) -> bytes:
    """Replace the manifest: the one moment at which a change becomes true. Returns what was written.

    One adapter a line: the encoder that indents takes ten times as long, and pools may be large.
    """
    lines = ",\n".join(_line(entry, repr(entry.extra)) for entry in entries)
    text = f'{ENCODE(head)[:-1]}, "adapters": [\n{lines}\n]}}\n'.encode()
    write_whole(pool / MANIFEST, text)
    return text


@lru_cache(maxsize=20_000)
def _line(entry: Entry, extra: str) -> str:
    """An adapter's line; a change of a large pool leaves nearly all of them as they were.

    Optional fields are part of the key as they are spelled: 1, 1.0 and True are equal, and an object may be changed.
    """
    known = {key: value for key, value in vars(entry).items() if key != "extra"}
    return ENCODE({**known, **entry.extra})


def keep_manifest(pool: Path, number: int, text: bytes) -> None:
    """Keep a manifest of an older format beside the one that will replace it."""
    write_whole(pool / f"{MANIFEST}.format{number}", text)


def _unreadable(pool: Path, why: Exception) -> PoolError:
    return PoolError(f"{pool / MANIFEST} cannot be read as a pool's manifest: {why}. Restore it from a copy.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Write tensors under a name that stands for their content; a file that holds it already is left."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
    if not (path.exists() and path.read_bytes() == content):
        write_whole(path, content)


def write_factors(path: Path, factors: Factors, about: dict[str, str] | None = None) -> None:
    """Keep an adapter's factors."""
    sides = (("down", 0), ("up", 1))
    tensors = {f"{site}|{side}": pair[place] for site, pair in factors.items() for side, place in sides}
    write_tensors(path, tensors, about)


def write_canonical(pool: Path, content: str, factors: Factors) -> None:
    """Keep the canonical factors of the adapter with that hash, and a hash of their own."""
    write_factors(pool / CANONICAL / f"{content}.safetensors", factors, {HASH: content_hash(factors)})


def prune(pool: Path, used: set[str]) -> list[Path]:
    """Delete data files that the manifest does not name, and what a crash left; returns them."""
    gone = []
    for folder in (ADAPTERS, CANONICAL, SAMPLES, STATISTICS, EPOCHS):
        for path in sorted((pool / folder).glob("*")):
            if path.name.removesuffix(".safetensors") not in used:
                path.unlink()
                gone.append(path)
    for path in pool.glob(".partial-*"):
        path.unlink()
        gone.append(path)
    return gone
