"""Who serves a pool holds a lease: while he does, no file of it may be deleted, and nothing be embedded anew.

A lease is a locked file, POOL/leases/<id>.lock; the operating system lets go of it when its holder ends, however he
ends. What nobody holds any more is taken away by whoever finds it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hilora.errors import PoolError
from hilora.pool import store

LEASES = "leases"


@contextmanager
def leased(pool: Path) -> Iterator[str]:
    """Hold a lease of a pool; yields its id. A pool that may not be written to needs none, as nobody prunes it.

    Raises:
        PoolError: the disk is full.
    """
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    if not os.access(pool, os.W_OK):
        yield name
        return
    path = pool / LEASES / f"{name}.lock"
    with store.explained(f"hold a lease of {pool}"):
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path, thread_local=False)  # whoever ends the server may be another thread
        lock.acquire()
    try:
        yield name
    finally:
        lock.release()
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others hold theirs
            path.parent.rmdir()


def holders(pool: Path) -> list[str]:
    """The leases of a pool that are held now; others are taken away."""
    found = []
    for path in sorted((pool / LEASES).glob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(path.stem)
            continue
        path.unlink(missing_ok=True)
        lock.release()
    return found


def refuse_leased(pool: Path, doing: str) -> None:
    """Refuse what would pull a file from under a server.

    Raises:
        PoolError: somebody serves the pool.
    """
    if held := holders(pool):
        who = ", ".join(f"process {name.split('-')[0]}" for name in held)
        raise PoolError(f"Cannot {doing} while {pool} is served (by {who}). Stop the server first.")
