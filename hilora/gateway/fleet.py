"""Several backends as one: each request goes to one that can take it, and to another where that fails.

    line.Line          who is next, and where
    backend.Backend    loads the adapter first, if it has to; one at a time
    exchange.exchange  asks, and passes the answer on

A backend is looked at once a second, and at once when it fails. A request is sent once more often than there are
backends, at most; where there is no connection, nothing was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

from hilora.gateway.backend import NAMES, Backend
from hilora.gateway.composition import factors_of
from hilora.gateway.exchange import ForgottenError, exchange
from hilora.gateway.folder import AdapterFolder
from hilora.gateway.job import Job, Out
from hilora.gateway.line import NOBODY, NOT_LOADED, Line, Want
from hilora.gateway.meters import Meters
from hilora.gateway.once import Once
from hilora.gateway.told import DownError, UnloadedError, UnreachedError
from hilora.serve.faults import AwayError, ClosingError, LateError
from hilora.serve.journal import LOG

SECONDS = 1.0
"""Between two looks at a backend."""
LEAST = 0.05
"""Seconds between them, whatever happens."""


class Fleet:
    """Answers jobs.

    Args:
        backends: all of them.
        line: gives jobs to them.
        folder: of adapters.
        at: path of that folder as the backends see it.
        base: name of the pool's base model.
        deadline: seconds for a job.
        check: finds out what a backend that has come up can do.
        meters: counts what happens.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        line: Line,
        folder: AdapterFolder,
        at: str,
        base: str,
        deadline: float,
        check: Callable[[Backend], Awaitable[None]],
        meters: Meters,
    ) -> None:
        self.backends, self.line, self.folder, self.at, self.base = backends, line, folder, at.rstrip("/"), base
        self.deadline, self.check, self.meters = deadline, check, meters
        self.closing = False
        self._writes: Once[None] = Once()
        self._watches: list[asyncio.Task[None]] = []
        self._tidying: set[asyncio.Task[None]] = set()
        self._scopes: set[asyncio.Timeout] = set()

    async def open(self) -> None:
        """Look at all backends, and again from now on."""
        await asyncio.gather(*(self._look(backend) for backend in self.backends))
        self._watches = [asyncio.create_task(self._watch(backend)) for backend in self.backends]

    async def close(self) -> None:
        """Ask nothing more."""
        self.give_up()
        for task in (*self._watches, *self._tidying):
            task.cancel()
        await asyncio.gather(*self._watches, *self._tidying, return_exceptions=True)
        await self._writes.close()
        for backend in self.backends:
            await backend.close()

    def give_up(self) -> None:
        """End all jobs, each with an error of its own."""
        self.closing = True
        while self._scopes:
            self._scopes.pop().reschedule(0.0)

    async def send(self, job: Job, out: Out) -> None:
        """Have a job answered.

        Raises:
            ServiceError: it cannot be, or not in time.
        """
        left = self.deadline - job.clock.total
        try:
            async with asyncio.timeout(left) as scope:
                self._scopes.add(scope)
                try:
                    with self.folder.using(job.name):
                        await self._send(job, out)
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            if self.closing:
                raise ClosingError("The gateway is shutting down. Ask another one, or come again.") from error
            raise LateError(
                f"No whole answer within {self.deadline:g} seconds. Ask for fewer tokens, or later."
            ) from error

    async def _send(self, job: Job, out: Out) -> None:
        want = Want(job.name, job.rank)
        last: DownError | UnloadedError | None = None
        asked = 0
        while asked <= len(self.backends):
            if last is not None:
                self.meters.retried()
            async with AsyncExitStack() as placed:
                with job.clock.at("waiting"):
                    backend = await placed.enter_async_context(self.line.place(want))
                try:
                    await self._ask(backend, job, out)
                except (DownError, UnloadedError) as error:
                    last = error
                    asked += not isinstance(error, UnreachedError)  # else it is asked once it is back
                    want.avoid.add(backend.place)
                    LOG.warning("backend %d did not answer: %s", backend.place, error, extra={"request": job.request})
                    self.meters.asked(backend.place, "failed")
                else:
                    self.meters.asked(backend.place, "answered")
                    return
        if isinstance(last, DownError) and last.content:
            await out.whole(last.status, last.kind, last.content)
            return
        raise AwayError(NOT_LOADED if isinstance(last, UnloadedError) else NOBODY, 2.0, "no_backend") from last

    async def _ask(self, backend: Backend, job: Job, out: Out) -> None:
        for again in (False, True):
            with job.clock.at("loading"):
                await self._load(backend, job)
            try:
                await exchange(backend, job, out)
                return
            except ForgottenError as error:
                self.meters.asked(backend.place, "forgotten")
                if again:
                    raise DownError("it does not know the model though it was loaded") from error
                if job.name is None:
                    await backend.list_models()
                else:
                    backend.loaded.pop(job.name, None)

    async def _load(self, backend: Backend, job: Job) -> None:
        """The adapter is there, on the disk and at the backend."""
        name, composition = job.name, job.composition
        if name is None or composition is None or (name in backend.loaded and not backend.can_load):
            return
        if not backend.takes(name, composition.rank):
            raise UnloadedError(f"Backend {backend.place} does not have {name}, and cannot load it.")
        write = partial(self._writes, name, partial(self._write, job, backend.models.root or self.base))
        if not self.folder.is_fresh(name):
            await write()
        try:
            await backend.load(name, f"{self.at}/{name}")
        except UnloadedError:
            if await asyncio.to_thread(self.folder.touch, name):
                raise
            await write()  # another gateway deleted it a moment ago
            await backend.load(name, f"{self.at}/{name}")
        if len(backend.loaded) > NAMES and not self._tidying:
            task = asyncio.create_task(backend.tidy())
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    async def _write(self, job: Job, base: str) -> None:
        composition = job.composition
        assert composition is not None

        def write() -> None:
            if not self.folder.touch(composition.name):
                self.folder.write(composition.name, factors_of(composition, job.read), base)

        await asyncio.to_thread(write)

    async def _watch(self, backend: Backend) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await backend.troubled.wait()
            await asyncio.sleep(LEAST)
            await self._look(backend)

    async def _look(self, backend: Backend) -> None:
        try:
            backend.troubled.clear()
            await backend.look()
            if backend.up:
                await self.check(backend)
            self.line.look()
        except Exception:  # noqa: BLE001  # it is looked at again
            LOG.exception("backend %d could not be looked at", backend.place)
