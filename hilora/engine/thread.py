"""One thread owns a model while there is anything to do: it takes the steps of all requests, whoever asked.

It starts with the first request and ends with the last. Callers wait for their own; whoever needs the model for
himself comes between two steps (`alone`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import torch

from hilora.engine.job import Job
from hilora.engine.loop import Loop
from hilora.engine.request import Request
from hilora.engine.teams import let_team_go

HEARD = 0.2
"""Seconds after which Ctrl-C is heard at the latest, whichever thread the system hands it to."""


TURNS = 2
"""Jobs that are under way together; others wait."""

Work = Request | Job


class Engine:
    """Requests and jobs of one model, from any thread.

    Args:
        model: the model.
        fill: the token that fills batches.
    """

    def __init__(self, model: Any, fill: int) -> None:
        self.loop = Loop(model, fill)
        self._turn, self._alone = threading.Condition(), threading.RLock()
        self._inbox: list[Work] = []
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._stepping, self._visitors = False, set[object]()

    def submit(self, works: Sequence[Work]) -> None:
        """Let requests and jobs join; their `on_end` tells when they are done."""
        with self._turn:
            self._inbox += works
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="hilora engine")
                try:
                    self._thread.start()
                except BaseException:  # there can be no more threads, or Ctrl-C
                    self._thread = None
                    raise

    def give_up(self, works: set[Work]) -> set[Work]:
        """Nobody wants these any more: they end at the next step. Returns those that the engine has taken."""
        with self._turn:
            self._inbox = [work for work in self._inbox if work not in works]
            for work in works:
                work.cancelled = True
            return {work for work in works if work.taken}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The model for the caller, between two steps."""
        visit = object()
        try:
            with self._turn:
                self._visitors.add(visit)
            with self._alone:
                with self._turn:
                    self._turn.wait_for(lambda: not self._stepping)
                self.loop.pause()
                yield
        finally:
            with self._turn:
                self._visitors.discard(visit)
                self._turn.notify_all()

    @torch.inference_mode()
    def _work(self) -> None:
        done: list[Work] = []
        while True:
            with self._turn:
                if self._thread is not threading.current_thread():
                    return  # Ctrl-C came while it was started
                is_idle = not self._inbox and not self._jobs and not self.loop.busy
                if is_idle or self._visitors:
                    self.loop.pause()
                if is_idle:
                    self._thread = None
                for work in done:  # who waits may then use the model himself
                    work.on_end(work)
                if is_idle:
                    return
                self._turn.wait_for(lambda: not self._visitors)
                for work in self._inbox:
                    work.taken = True
                    (self._jobs if isinstance(work, Job) else self.loop.waiting).append(work)  # type: ignore[arg-type]
                self._inbox = []
                self._stepping = True
            try:
                done = self._turns()
            except Exception as error:  # noqa: BLE001  # none of its works' own: they would wait for ever
                done = [*self.loop.fail(error)]
            finally:
                with self._turn:
                    self._stepping = False
                    self._turn.notify_all()

    def _turns(self) -> list[Work]:
        """A turn of the first job, if there is one, and a step of all requests. Returns what has ended."""
        done: list[Work] = []
        if self._jobs:
            self.loop.pause()
            job = self._jobs.popleft()
            if job.go(self._is_awaited):
                done.append(job)
            else:
                self._jobs.insert(TURNS - 1, job)
        if self.loop.busy:
            self.loop.step()
        return [*done, *self.loop.take_ended()]

    def _is_awaited(self) -> bool:
        """Whether anybody but the job whose turn it is wants the model."""
        return bool(self._inbox or self._jobs or self._visitors or self.loop.busy)


def drive(engine: Engine, works: Iterator[Work], most: int, events: SimpleQueue[Any]) -> Iterator[Any]:
    """Have works done, at most so many at once.

    Once it is closed, for whatever reason, what has not ended is given up at the next step, and waited for.

    Args:
        engine: does them.
        works: what to do.
        most: at once.
        events: where each comes when it has ended; what else comes there is passed on.

    Yields:
        What comes to `events`.

    Raises:
        BaseException: what went wrong in one of them.
    """
    pending: set[Work] = set()
    told: set[Work] = set()  # noted apart: Ctrl-C may come between taking an event and looking at it

    def tell(work: Work) -> None:
        told.add(work)
        events.put(work)

    try:
        while True:
            new = list(islice(works, most - len(pending)))
            for work in new:
                work.on_end = tell
            pending |= set(new)
            if new:
                engine.submit(new)
            if not pending:
                return
            event = None
            let_team_go()
            while event is None:
                with suppress(Empty):  # a signal that another thread was handed is heard between two waits
                    event = events.get(timeout=HEARD)
            if isinstance(event, (Request, Job)):
                pending.discard(event)
                if event.error is not None:
                    raise event.error
            yield event
    finally:
        begun = engine.give_up(pending)
        while not begun <= told:
            with suppress(Empty):
                events.get(timeout=HEARD)


_engines: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()  # an engine keeps its model
_making = threading.Lock()


def engine_of(model: Any, fill: int) -> Engine:
    """The engine of a model: one, whoever asks."""
    with _making:
        found = _engines.get(id(model))
        if found is None:
            found = _engines[id(model)] = Engine(model, fill)
        return found
