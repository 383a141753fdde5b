"""Something that does not fit into the loop's steps: a batch that nobody can join. It takes turns with all others.

A job runs in a thread of its own, but never at the same time as others: the engine says go, and waits until the job
hands the model back, which it does between two of its own steps if anybody else wants one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hilora.engine.batching import ServeRows
from hilora.engine.teams import let_team_go


@dataclass(eq=False)
class Job:
    """A batch that nobody can join.

    Args:
        run: does it, and calls `hand_over` between two steps where it may.
        on_end: called in the engine's thread when it has ended.
    """

    run: Callable[[Job], None]
    on_end: Callable[[Any], None] = lambda job: None
    cancelled: bool = False
    taken: bool = False  # the engine has it
    error: BaseException | None = None
    _ended: bool = False
    _awaited: Callable[[], bool] = lambda: False
    _thread: threading.Thread | None = None
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def go(self, awaited: Callable[[], bool]) -> bool:
        """Its next steps, till others want the model, or its end; unless nobody wants it. Called by the engine.

        Args:
            awaited: whether anybody else wants the model.

        Returns:
            Whether it has ended.
        """
        self._awaited = awaited
        let_team_go()
        if self._thread is None:
            if self.cancelled:
                return True
            thread = threading.Thread(target=self._work, name="hilora batch", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there can be no more threads
                self.error = error
                return True
            self._thread = thread
        else:
            self._go.release()
        self._back.acquire()
        if self._ended:
            self._thread.join()
        return self._ended

    @property
    def is_awaited(self) -> bool:
        """Whether anybody else wants the model."""
        return self._awaited()

    def hand_over(self) -> None:
        """Let others have the model, which is as they left it, for some steps. Called by what runs."""
        let_team_go()
        self._back.release()
        self._go.acquire()

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            self.run(self)
        except BaseException as error:  # noqa: BLE001  # who waits for it gets it
            self.error = error
        self._ended = True
        self._back.release()


class Shared:
    """A job's adapters, which are taken off the model while others have it.

    Args:
        job: whose they are.
        serve: makes the model serve rows.
    """

    def __init__(self, job: Job, serve: ServeRows) -> None:
        self.job, self.serve = job, serve
        self._places: Sequence[int] = ()
        self._on = ExitStack()

    @contextmanager
    def __call__(self, places: Sequence[int]) -> Iterator[None]:
        """The model serving these rows, in that order, while it is open."""
        self._places = places
        try:
            with self._on:
                self._on.enter_context(self.serve(places))
                yield
        finally:
            self._on = ExitStack()

    def between(self) -> None:
        """Between two steps, others may have the model."""
        if self.job.is_awaited:
            self._on.close()
            self.job.hand_over()
            self._on.enter_context(self.serve(self._places))
