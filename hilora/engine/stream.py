"""An answer piece by piece: a thread generates, the consumer takes; who stops taking ends it at the next token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from hilora.base.answers import Reading
from hilora.types import Completion

TICK = 0.05
"""Seconds between two looks at whether somebody still wants the answer, while the model serves others."""


class Abandoned(Exception):  # no error: nobody is there to see it
    """Nobody wants the answer any more."""


class Follow:
    """Passes on what a row says as it comes. Goes to `generate` among its stopping criteria."""

    def __init__(self) -> None:
        self.events: SimpleQueue[str | Completion | BaseException] = SimpleQueue()
        self.given = ""
        self.cancelled = False

    def see(self, reading: Reading) -> None:
        """Give out what is certain by now; to be called once a token."""
        self.give(reading.ready())

    def give(self, text: str) -> None:
        """Give out what is new in a text."""
        if len(text) > len(self.given) and text.startswith(self.given):
            self.events.put(text[len(self.given) :])
            self.given = text

    def run(self, answer: Callable[[], Completion]) -> None:
        """Work, in the thread."""
        try:
            whole = answer()
            self.give(whole.text)
            self.events.put(whole)
        except BaseException as error:  # noqa: BLE001  # the consumer gets it
            self.events.put(error)


def follow(answer: Callable[[Follow], Completion]) -> Generator[str, None, Completion]:
    """Pieces of an answer as they come; the generator's return value is the completion.

    Once it is closed, for whatever reason, the model takes at most one more step, and the thread has ended.

    Args:
        answer: generates, with a `Follow` among its stopping criteria.
    """
    seen = Follow()
    worker = threading.Thread(target=seen.run, args=[lambda: answer(seen)], name="hilora stream")
    try:
        worker.start()
        while True:
            event = seen.events.get()
            if isinstance(event, Completion):
                return event
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        seen.cancelled = True
        if worker.is_alive() and threading.current_thread() is not worker:  # whose garbage collection may close this
            worker.join()


@contextmanager
def turn(lock: threading.Lock, seen: Follow | None) -> Iterator[None]:
    """The model's lock held; an answer that nobody wants any more does not wait for it.

    Raises:
        Abandoned: in the thread of such an answer.
    """
    while not lock.acquire(timeout=-1 if seen is None else TICK):
        if seen is not None and seen.cancelled:
            raise Abandoned
    try:
        if seen is not None and seen.cancelled:
            raise Abandoned
        yield
    finally:
        lock.release()
