"""Uploads on their way into the pool: received, checked one after another, published whole or not at all.

    received   its files lie in POOL/serve/incoming/<lease>/<upload>/, waiting
    checking   another process looks at it (`check`)
    live       the manifest names it, and it is served: only then is it called so
    refused    with the reason; once it has passed its check, its files stay, named by nobody, until they are pruned

Whatever becomes of it, its files are deleted, the samples' texts first of all. What a crash left is deleted at the
next start, and an upload that was under way then is live if the pool has it, else refused. Files of an adapter are
named by their contents and never overwritten: requests keep what they began with.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hilora.errors import HiloraError
from hilora.pool.lease import holders, leased
from hilora.pool.view import Entry
from hilora.serve.asked import Caller
from hilora.serve.check import Task
from hilora.serve.checker import Checker, RefusedError
from hilora.serve.faults import DISK_FULL, BusyError, ServiceError, is_full
from hilora.serve.journal import LOG
from hilora.serve.limits import Limits
from hilora.serve.meters import Meters, reason_of
from hilora.serve.parts import Form
from hilora.serve.publish import Publisher
from hilora.serve.settle import INTERRUPTED, settle
from hilora.serve.state import FOLDER, OPEN, State
from hilora.serve.state_tables import Upload
from hilora.serve.tenants import called, inner_name, tenant_of

INCOMING = "incoming"
FAILED = "The server failed; its log says why."


def reason_for(error: BaseException) -> str:
    """What a sender is told of a failure of the server's own."""
    return DISK_FULL if is_full(error) else FAILED


@dataclass(frozen=True)
class _Job:
    upload: Upload
    task: Task
    replace: bool
    caller: Caller


class Uploads:
    """Takes uploads.

    Args:
        publisher: changes the pool.
        state: remembers them.
        limits: bounds.
        checker: checks them.
        meters: counts what becomes of them.
    """

    def __init__(
        self,
        publisher: Publisher,
        state: State,
        limits: Limits,
        checker: Checker | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.publisher, self.state, self.limits = publisher, state, limits
        self.checker, self.meters = checker or Checker(), meters or Meters()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: dict[str, int] = {}
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._thread = threading.Thread(target=self._work, name="hilora uploads", daemon=True)
        self._folder = publisher.pool.absolute() / FOLDER / INCOMING

    def open(self) -> None:
        """Hold the pool's lease, delete what a crash left, and begin to check."""
        pool, home = self.publisher.pool, self._folder
        lease = self._held.enter_context(leased(pool))
        self._held.enter_context(self.state.held())
        self._folder = home / lease
        self._folder.mkdir(mode=0o700, parents=True)
        alive = {*holders(pool), lease}
        for path in home.iterdir():
            if path.name not in alive:
                shutil.rmtree(path, ignore_errors=True)
        there = {path.name for each in home.iterdir() for path in each.iterdir()}
        settle(self.state, self.publisher.served(), there, self.meters)
        self.checker.prepare()
        self._thread.start()

    def close(self) -> None:
        """End the check that runs; what waits is refused."""
        self.checker.close()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._held.close()

    def reserve(self, caller: Caller) -> Path:
        """A place in the line, with an empty folder for the files; `release` gives it back, or `submit` takes it.

        Raises:
            BusyError: too many wait already, of all tenants or of this one.
        """
        with self._lock:
            mine, everybody = self._waiting.get(caller.tenant, 0), sum(self._waiting.values())
            if everybody >= self.limits.uploads or mine >= max(1, self.limits.uploads // 2):
                raise BusyError("Too many uploads are waiting to be checked. Come again.", 10.0, "queue_full")
            self._waiting[caller.tenant] = mine + 1
        try:
            return Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        except BaseException:
            self._free(caller)
            raise

    def release(self, caller: Caller, folder: Path) -> None:
        """Give a place in the line back, and delete its files."""
        shutil.rmtree(folder, ignore_errors=True)
        self._free(caller)

    def _free(self, caller: Caller) -> None:
        with self._lock:
            left = self._waiting.pop(caller.tenant, 0) - 1
            if left > 0:
                self._waiting[caller.tenant] = left

    def submit(self, caller: Caller, tenant: str, name: str, form: Form, *, replace: bool) -> Upload:
        """Have a form checked, and published if it is good; its folder is deleted in the end.

        Args:
            caller: who sent it.
            tenant: whose own it is to be; "" for everybody's.
            name: what he calls it.
            form: in the folder that was reserved.
            replace: it may take the place of another content.

        Raises:
            ServiceError: it is no whole form, or too much.
            InputError: it may not be called so.
        """
        form.check()
        inner, limits = inner_name(tenant, name), self.limits
        self.publisher.check_quota(tenant, inner, form.size)
        any_base = form.flag("any_base", False)
        upload = self.state.receive(tenant, name, form.size)
        try:
            folder = form.folder.rename(self._folder / upload.id)
        except OSError as error:
            self.state.move(upload.id, "refused", reason=reason_for(error), late=True)
            raise
        task = Task(
            pool=str(self.publisher.pool.absolute()),
            folder=str(folder),
            name=name,
            inner=inner,
            tenant=tenant,
            any_base=any_base,
            rank=limits.rank,
            samples=limits.samples,
            sample_length=limits.sample_length,
            capture=limits.capture,
            memory=limits.check_memory,
            seconds=limits.check_seconds,
            server=os.getpid(),
        )
        self.state.note("upload", name, tenant=tenant, token=caller.token, detail=upload.id)
        self._jobs.put(_Job(upload, task, replace, caller))
        return upload

    async def wait(self, upload: str, seconds: float) -> Upload:
        """An upload once its fate is known, or as it is after so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            found = await asyncio.to_thread(self.state.upload, upload)
            assert found is not None
            if found.state not in OPEN or loop.time() >= until:
                return found
            await asyncio.sleep(min(0.1, max(0.01, until - loop.time())))

    def remove(self, caller: Caller, entry: Entry) -> None:
        """Take an adapter out of the pool; returns when it is served no more."""
        self.publisher.remove(entry)
        self.meters.removed(tenant_of(entry))
        tenant, name = tenant_of(entry), called(entry)
        if (last := self.state.last(tenant, name)) is not None and last.state == "live":
            self.state.move(last.id, "removed", late=True)
        self.state.note("remove", name, tenant=tenant, token=caller.token, detail=entry.hash)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._check(job)
            finally:
                self._free(job.caller)

    def _check(self, job: _Job) -> None:
        state, content, reason = "refused", "", ""
        fate = "failed", "error"
        try:
            self.state.move(job.upload.id, "checking")
            entry = self._checked(job.task)
            self.publisher.publish(entry, job.upload, replace=job.replace)
            state, content, fate = "live", entry.hash, ("live", "")
        except (RefusedError, ServiceError) as error:
            ended = self.checker.ended
            reason = INTERRUPTED if ended else DISK_FULL if error.code == "disk_full" else str(error)
            fate = "refused", "interrupted" if ended else reason_of(error)
        except HiloraError as error:
            LOG.error("An upload could not be published: %s", error, extra={"subject": job.upload.id})
            reason = reason_for(error)
        except Exception as error:  # noqa: BLE001  others wait: the thread goes on
            LOG.exception("An upload failed.", extra={"subject": job.upload.id})
            reason = reason_for(error)
        if reason == DISK_FULL:
            fate = "failed", "disk_full"
        shutil.rmtree(job.task.folder, ignore_errors=True)  # before anybody hears that it is done
        self.meters.uploaded(*fate)
        self._tell(job, state, content, reason)

    def _checked(self, task: Task) -> Entry:
        began = time.perf_counter()
        try:
            return self.checker(task)
        finally:
            self.meters.checked(time.perf_counter() - began)

    def _tell(self, job: _Job, state: str, content: str, reason: str) -> None:
        upload = job.upload
        try:
            self.state.move(upload.id, state, content=content, reason=reason, late=True)
            self.state.note(state, upload.name, tenant=upload.tenant, token=job.caller.token, detail=upload.id)
        except Exception:  # noqa: BLE001  likewise
            LOG.exception("The state cannot be written.", extra={"subject": upload.id})
        LOG.info("upload", extra={"subject": upload.id, "state": state, "tenant": upload.tenant})
