"""Where results go: looked at before the long work, and held by one run at a time while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hilora.errors import InputError


def check_file(path: Path) -> None:
    """Refuse a file that could not be written at the end of the work; nothing is made yet.

    Raises:
        InputError: it is a folder, or may not be written; what is in its way is named.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is to be written. Give the file's name, too.")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} may not be written. Choose another file, or change its permissions.")
    _check_parent(path)


def check_folder(path: Path) -> None:
    """Refuse a folder into which nothing could be written at the end of the work; nothing is made yet.

    Raises:
        InputError: it is a file, or may not be written to; what is in its way is named.
    """
    _check_parent(path / "any")


def _check_parent(path: Path) -> None:
    """Refuse a path whose folder is none, and cannot be made."""
    there = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not there.is_dir():
        raise InputError(f"{path.parent} cannot be a folder: {there} is none. Choose another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"The folder {there} may not be written to. Choose another place, or change its permissions."
        )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold an output: another run that would write it meanwhile is refused.

    What is held is a lock on `.NAME.lock` beside it. The operating system lets go of it when the run ends, however it
    ends; the empty file stays, as taking it away could let in two at once. Devices, such as /dev/null, are anyone's.

    Raises:
        InputError: another run holds it.
    """
    from filelock import FileLock, Timeout

    if _is_device(path):
        yield
        return
    lock = FileLock(_lock_of(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"Another run is writing {path}. Wait for its end, or choose another place.") from error
    try:
        yield
    finally:
        lock.release()


def refuse_held(path: Path) -> None:
    """Refuse an output that another run holds, before the work that leads to it; nothing is made.

    Raises:
        InputError: another run holds it.
    """
    if _lock_of(path).exists():
        with alone(path):
            pass


def _lock_of(path: Path) -> Path:
    """The file that stands for an output, by whatever links it is reached."""
    real = path.resolve()
    return real.with_name(f".{real.name}.lock")


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
