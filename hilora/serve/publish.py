"""Changes of a served pool: true once the server routes by them, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path

from hilora.errors import InputError
from hilora.pool import Pool, store
from hilora.pool.manifest import inherit
from hilora.pool.view import Entry, PoolView
from hilora.serve.faults import ConflictError, ForbiddenError, ServiceError
from hilora.serve.limits import Limits
from hilora.serve.state_tables import Upload
from hilora.serve.tenants import tenant_of

TAKEN = "There is an adapter of this name with another content already. PUT takes its place."


class Publisher:
    """Changes the pool that a server serves.

    Args:
        pool: its folder.
        limits: quotas.
        on_change: called after each change, in the thread that made it; returns when it is served.
        served: the view that is served now.
    """

    def __init__(
        self, pool: Path, limits: Limits, on_change: Callable[[], None], served: Callable[[], PoolView]
    ) -> None:
        self.pool, self.limits, self.on_change, self.served = pool, limits, on_change, served
        self._changing = threading.Lock()

    def check_quota(self, tenant: str, inner: str, size: int) -> None:
        """Refuse what is more than a tenant may have.

        Args:
            tenant: whose own it would be; "" for everybody's.
            inner: the pool's name for it; one that has it gives way.
            size: bytes.

        Raises:
            ForbiddenError: of adapters, or of bytes.
        """
        entries = [e for e in self.served().entries if tenant_of(e) == tenant and e.name != inner]
        if len(entries) >= self.limits.adapters:
            raise ForbiddenError(
                f"There are {len(entries)} adapters already, as many as there may be. Delete one.", "quota_exceeded"
            )
        used = size + sum(map(self._bytes, entries))
        if used > self.limits.tenant_bytes:
            raise ForbiddenError(
                f"The adapters would have {used} bytes; there may be {self.limits.tenant_bytes}. Delete one.",
                "quota_exceeded",
            )

    def _bytes(self, entry: Entry) -> int:
        try:
            return (self.pool / store.ADAPTERS / f"{entry.hash}.safetensors").stat().st_size
        except OSError:
            return 0

    def publish(self, entry: Entry, upload: Upload, *, replace: bool) -> None:
        """Let an adapter whose files are kept be routed to, and see that it is; else all is as it was.

        The same content and samples under the same name change nothing.

        Args:
            entry: what the manifest is to say.
            upload: by which it came.
            replace: it may take the place of another content.

        Raises:
            ConflictError: it may not.
            ForbiddenError: it is too much.
            ServiceError: the server cannot route to it.
            PoolError: the pool cannot be written.
        """
        with self._changing:
            self.check_quota(tenant_of(entry), entry.name, upload.bytes)
            pool = Pool.open(self.pool)
            old = next((each for each in pool.entries if each.name == entry.name), None)
            if old is not None and (old.hash, old.samples) == (entry.hash, entry.samples):
                return
            if old is not None and not replace:
                raise ConflictError(TAKEN, "already_exists")
            kept = inherit(entry, old)
            extra = {**kept.extra, **entry.extra, "upload": upload.id}  # by which `settle` knows it
            pool.publish(changed(kept, extra=extra), replace=True)
            self.on_change()
            if not any((each.name, each.hash) == (entry.name, entry.hash) for each in self.served().entries):
                _undo(pool, entry, old)
                self.on_change()
                raise ServiceError("The server could not route to it; its log says why.", "adapter_refused")

    def remove(self, entry: Entry) -> None:
        """Take an adapter out, unless another content has its name by now.

        Raises:
            PoolError: the pool cannot be written.
        """
        with self._changing:
            pool = Pool.open(self.pool)
            if any((each.name, each.hash) == (entry.name, entry.hash) for each in pool.entries):
                pool.remove(entry.name)
            self.on_change()


def _undo(pool: Pool, entry: Entry, old: Entry | None) -> None:
    """Publish what was there before."""
    try:
        if old is None:
            pool.remove(entry.name)
        else:
            pool.publish(old, replace=True)
    except InputError:  # others have taken it out meanwhile
        return
