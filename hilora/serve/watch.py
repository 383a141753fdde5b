"""A pool's folder is looked at often; what others change there is served a moment later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from hilora.errors import HiloraError
from hilora.pool.folder import PoolFolder
from hilora.pool.store import MANIFEST
from hilora.pool.view import PoolView
from hilora.serve.journal import LOG

SECONDS = 0.5
"""Between two looks."""


class Watch:
    """Opens a pool anew whenever its manifest has changed.

    Args:
        path: the pool's folder.
        version: of the pool that is served now.
        changed: called with a new view, in a thread of its own.
    """

    def __init__(self, path: Path, version: int, changed: Callable[[PoolView], None]) -> None:
        self.path, self.version, self.changed = path, version, changed
        self.asked: Callable[[], bool] = lambda: False  # whether to look though the manifest is as it was
        self.seen: Callable[[PoolFolder], None] = lambda view: None  # called with each view that is there
        self.trouble = ""
        self._closed = threading.Event()
        self._sign_seen = self._sign()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="hilora pool watch", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look now; returns when what is there is served."""
        with self._lock:
            sign = self._sign()
            try:
                view = PoolFolder.open(self.path)
                if view.version != self.version:
                    self.changed(view)
                    self.version = view.version
                    LOG.info("pool changed", extra={"pool_version": view.version, "adapters": len(view)})
                self._sign_seen, self.trouble = sign, ""
                self.seen(view)
            except HiloraError as error:  # what is served stays
                if str(error) != self.trouble:
                    LOG.error("the pool cannot be read; the last one is served: %s", error)
                self.trouble = str(error)

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(SECONDS):
            try:
                if self.asked():
                    self.version = -1
                if self.version == -1 or self._sign() != self._sign_seen:
                    self.look()
            except Exception:  # noqa: BLE001  # others wait for the next look
                LOG.exception("the pool could not be looked at")

    def _sign(self) -> tuple[int, int, int]:
        try:
            found = (self.path / MANIFEST).stat()
        except OSError:
            return 0, 0, 0
        return found.st_mtime_ns, found.st_size, found.st_ino
