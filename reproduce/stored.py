"""Rows of runs: kept packed, worked on as plain lines, so that a run that is killed has lost nothing.

A plain file is what an interrupted run has left, and counts before the archive that it was unpacked from.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hilora.jsonl import PACKED, plain_path, read_text


def packed_path(path: Path) -> Path:
    """Where a file is once it is packed."""
    return path.with_name(path.name + PACKED)


def stored(path: Path) -> Path:
    """Where the rows of a plain path are: there, or packed; the path itself where there are none."""
    packed = packed_path(path)
    return packed if packed.exists() and not path.exists() else path


def runs_in(folder: Path, *names: str) -> list[Path]:
    """The files of these runs that are there, one each; of all runs where none is named."""
    found = [*folder.glob("*.jsonl"), *folder.glob(f"*.jsonl{PACKED}")]
    paths = [folder / f"{name}.jsonl" for name in names] or sorted(set(map(plain_path, found)))
    return [path for path in map(stored, paths) if path.exists()]


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A plain file to append to, unpacked where there is only its archive, and packed again when all went well."""
    if (source := stored(path)) != path:
        part = path.with_name(f"{path.name}.part")  # half a file must not be taken for what a run has left
        part.write_text(read_text(source), encoding="utf-8", newline="\n")
        part.replace(path)
    yield path
    if path.exists():
        pack(path)


def pack(path: Path) -> Path:
    """Put a file into an archive beside it, the same bytes for the same lines. Returns the archive."""
    packed = packed_path(path)
    part = packed.with_name(f"{packed.name}.part")
    with part.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as archive:
        archive.write(path.read_bytes())
    part.replace(packed)
    path.unlink()
    return packed


def joined(name: str) -> tuple[str, ...]:
    """A run of HiLoRA's experiments, and those whose columns join its tables."""
    return (name, f"phatgoose-{name}", f"rivals-{name}")
