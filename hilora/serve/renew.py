"""A new epoch for a pool that has grown, made in another process while the server goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from hilora.pool import Pool
from hilora.pool.folder import PoolFolder
from hilora.serve.journal import LOG
from hilora.serve.meters import Meters
from hilora.serve.tenants import tenant_of

SLOWLY = 10
"""How nice it is."""
MOMENT = 0.5
"""Seconds between two looks whether the server is there."""


def public_names(view: PoolFolder) -> list[str]:
    """The adapters that everybody sees: an epoch learns from no others, or they would be heard in all routes."""
    return [entry.name for entry in view.entries if not tenant_of(entry)]


class Renewal:
    """Makes new epochs.

    Args:
        pool: the pool's folder.
        meters: show how many.
    """

    def __init__(self, pool: Path, meters: Meters) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._ends = {"made": 0, "failed": 0}
        meters.watch_counts("hilora_epochs", "New epochs", "end", self.ends)

    def consider(self, view: PoolFolder) -> None:
        """Begin a new epoch, if it is time and none is being made."""
        only = public_names(view)
        if not only or not (view.epoch_is_stale(only) or view.epoch_is_stale()):
            return
        with self._lock:
            self._look()
            if self._closed or self._process is not None:
                return
            command = [sys.executable, "-m", "hilora.serve.renew", str(self.pool), str(os.getpid())]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        LOG.info("a new epoch is made", extra={"pool_version": view.version, "adapters": len(view)})

    def ends(self) -> dict[str, int]:
        """How many epochs were made so far, and how many failed."""
        with self._lock:
            self._look()
            return dict(self._ends)

    def _look(self) -> None:
        """Count the process that has ended, if one has."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ends["failed" if code else "made"] += 1
            self._process = None

    def close(self) -> None:
        """Give up the one that is being made."""
        with self._lock:
            self._closed = True
            self._look()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None


def main() -> None:
    """The process: its arguments are the pool's folder and the server, with which it ends."""
    folder, server = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(server),), daemon=True).start()
    os.nice(SLOWLY)
    pool = Pool.open(Path(folder))
    pool.renew_epoch(public_names(pool))
    pool.fit()


def _end_with(server: int) -> None:
    """End this process when its server has: the next one makes an epoch of its own."""
    while os.getppid() == server:
        time.sleep(MOMENT)
    os._exit(1)


if __name__ == "__main__":
    main()
