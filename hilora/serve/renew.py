"""A new epoch for a pool that has grown, made in another process while the server goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from hilora.pool import Pool
from hilora.pool.folder import PoolFolder
from hilora.serve.journal import LOG
from hilora.serve.tenants import tenant_of

SLOWLY = 10
"""How nice it is."""


def public_names(view: PoolFolder) -> list[str]:
    """The adapters that everybody sees: an epoch learns from no others, or they would be heard in all routes."""
    return [entry.name for entry in view.entries if not tenant_of(entry)]


class Renewal:
    """Makes new epochs.

    Args:
        pool: the pool's folder.
    """

    def __init__(self, pool: Path) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def consider(self, view: PoolFolder) -> None:
        """Begin a new epoch, if it is time and none is being made."""
        only = public_names(view)
        if not only or not (view.epoch_is_stale(only) or view.epoch_is_stale()):
            return
        with self._lock:
            if self._closed or (self._process is not None and self._process.poll() is None):
                return
            command = [sys.executable, "-m", "hilora.serve.renew", str(self.pool)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        LOG.info("a new epoch is made", extra={"pool_version": view.version, "adapters": len(view)})

    def close(self) -> None:
        """Give up the one that is being made."""
        with self._lock:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()


def main() -> None:
    """The process: the pool's folder is its argument."""
    os.nice(SLOWLY)
    pool = Pool.open(Path(sys.argv[1]))
    pool.renew_epoch(public_names(pool))
    pool.fit()


if __name__ == "__main__":
    main()
