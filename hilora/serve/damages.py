"""Adapters whose files are damaged, or gone: no prompt goes to them until the files are good again.

A file is read, and compared with the hash that names it, when an adapter is first used, and again where its time or
size has changed; a request that comes later costs a look at these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.errors import PoolError
from hilora.pool import reading, store
from hilora.pool.folder import PoolFolder
from hilora.pool.reading import DamagedError
from hilora.pool.view import Entry, PoolView
from hilora.serve.edition import Edition
from hilora.serve.faults import UnusableError
from hilora.serve.journal import LOG

T = TypeVar("T")
Sign = tuple[int, ...]
"""What changes when a file does; empty where there is none."""


@dataclass(frozen=True)
class _Damage:
    """One file that is not what its name says."""

    path: Path
    sign: Sign

    @property
    def is_samples(self) -> bool:
        """Whether it holds what is kept of samples; else weights."""
        return self.path.parent.name == store.SAMPLES


class Damages:
    """Knows the damaged files of a pool that is served."""

    def __init__(self) -> None:
        self._found: dict[str, _Damage] = {}  # by the hash that names the file
        self._good: dict[str, Sign] = {}  # weights that were what their name says, by content hash
        self._lock = threading.Lock()

    def note(self, error: DamagedError) -> bool:
        """A file was found damaged. Whether that is news, and of an adapter."""
        path = error.path
        with self._lock:
            if path.parent.name not in (store.ADAPTERS, store.SAMPLES) or path.stem in self._found:
                return False
            self._found[path.stem] = _Damage(path, sign_of(path))
            self._good.pop(path.stem, None)
        LOG.error("a file is damaged; its adapter serves nobody until it is mended: %s", error)
        return True

    def check(self, view: PoolView, contents: Iterable[str]) -> None:
        """See that adapters can be loaded; each is read once, and again where its file has changed.

        Raises:
            DamagedError: one of them cannot.
        """
        for content in contents:
            path = view.path / store.ADAPTERS / f"{content}.safetensors"
            sign = sign_of(path)
            if not sign or self._good.get(content) != sign:
                view.factors(content)
                self._good[content] = sign

    def look(self) -> None:
        """See whether damaged files have been mended."""
        for content, damage in list(self._found.items()):
            sign = sign_of(damage.path)
            if sign == damage.sign:
                continue
            try:
                _read(damage)
            except PoolError:
                with self._lock:
                    self._found[content] = _Damage(damage.path, sign)
                continue
            with self._lock:
                self._found.pop(content, None)
            LOG.info("a damaged file is good again", extra={"subject": content})

    def forget(self, view: PoolView) -> None:
        """What is in the pool no more is no damage."""
        used = {content for entry in view.entries for content in (entry.hash, entry.samples)}
        with self._lock:
            self._found = {content: each for content, each in self._found.items() if content in used}
            self._good = {content: sign for content, sign in self._good.items() if content in used}

    def over(self, edition: Edition, view: PoolView) -> Edition:
        """The next edition, in which other samples stand in for those that cannot be read.

        Raises:
            PoolError: it cannot be made for another reason.
        """
        return self.renewed(edition.over, view)

    def renewed(self, make: Callable[[PoolView], T], view: PoolView) -> T:
        """What is made of a view, likewise."""
        self.forget(view)
        while True:
            if isinstance(view, PoolFolder):
                view.lost = self.lost()
            try:
                return make(view)
            except DamagedError as error:
                if not self.note(error):
                    raise

    def lost(self) -> frozenset[str]:
        """Hashes of samples that cannot be read."""
        with self._lock:
            return frozenset(content for content, damage in self._found.items() if damage.is_samples)

    def are_new(self, view: PoolView) -> bool:
        """Whether others have been lost, or found again, than a view knows of."""
        return isinstance(view, PoolFolder) and self.lost() != view.lost

    def whole(self, view: PoolView) -> Bool[Tensor, " adapter"]:
        """Which adapters may be routed to."""
        mask = torch.ones(len(view), dtype=torch.bool)
        if self._found:
            mask[[place for place, entry in enumerate(view.entries) if self._is_hit(entry)]] = False
        return mask

    def entries(self, view: PoolView) -> list[Entry]:
        """Adapters that are not routed to."""
        return [entry for entry in view.entries if self._is_hit(entry)]

    def refuse(self, entry: Entry, name: str) -> None:
        """Refuse an adapter that is asked for by name, and cannot be loaded; samples are no matter then.

        Raises:
            UnusableError: its weights are damaged.
        """
        if entry.hash in self._found:
            raise UnusableError(
                f"The files of {name!r} are damaged on the server. Send it again (PUT), or ask for another model.",
                param="model",
            )

    def _is_hit(self, entry: Entry) -> bool:
        return entry.hash in self._found or entry.samples in self._found


def sign_of(path: Path) -> Sign:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(damage: _Damage) -> None:
    """Read a file that was damaged.

    Raises:
        PoolError: it still is.
    """
    if damage.is_samples:
        PoolFolder.read_samples(damage.path)
    else:
        reading.read_factors(damage.path)
