"""A folder of plain PEFT adapters that gateways write and vLLM reads; each is there whole or not at all.

    FOLDER/hilora-<16 hex>/     one adapter, named by content, never changed; its time says when it was last used
    FOLDER/.hilora-...          on its way in, or out

vLLM reads an adapter's files again whenever it has forgotten them, in the middle of its work, and ends if they are
gone. So those that a request may still use, another gateway's too, are never deleted: each is touched when a request
for it begins, and kept for longer than a request may last.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hilora.errors import InputError
from hilora.gateway.composition import DIGITS, PREFIX
from hilora.pool.export import write_peft
from hilora.serve.faults import AwayError, FullError, is_full
from hilora.types import Factors

NAME = re.compile(rf"{PREFIX}[0-9a-f]{{{DIGITS}}}")
PARTIAL = re.compile(rf"\.{PREFIX}[0-9a-f]{{{DIGITS}}}\.[0-9a-f]{{16}}")
MARGIN = 60.0
"""Seconds for which an adapter is kept beyond the longest request."""
FRESH = 20.0
"""Seconds for which one that was touched is not touched again; fewer than MARGIN."""
HOUR = 3600.0
"""Seconds after which what is on its way in or out was left there by somebody who has ended."""
BESIDE = 64 << 10
"""Bytes of an adapter beside its weights, at most about."""


class AdapterFolder:
    """Writes adapters, and deletes those that were used longest ago.

    Args:
        path: of the folder; is made.
        limit: bytes of all adapters in it.
        seconds: that a request may last.
        clock: says what time it is, as files do.

    Attributes:
        size: bytes of all adapters, when they were last counted.
        written: adapters that were written here.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, path: Path, limit: int, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.path, self.limit, self.keep, self.clock = path.absolute(), limit, seconds + MARGIN, clock
        self.size = self.written = 0
        self._uses: Counter[str] = Counter()
        self._touched: dict[str, float] = {}
        self._lock = threading.Lock()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tried = self.path / self._partial("0" * DIGITS)
            tried.mkdir()
            tried.rmdir()
            self._scan()
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror}. Give another --adapters: a folder that the "
                "gateway writes and vLLM reads."
            ) from error

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Meanwhile an adapter stays; None for none."""
        if name is None:
            yield
            return
        self._uses[name] += 1
        try:
            yield
        finally:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]

    def is_fresh(self, name: str) -> bool:
        """Whether an adapter is there for certain, without a look at the disk."""
        return self.clock() - self._touched.get(name, 0.0) < FRESH

    def touch(self, name: str) -> bool:
        """Note that an adapter is used; whether it is there."""
        try:
            os.utime(self.path / name)
        except FileNotFoundError:
            self._touched.pop(name, None)
            return False
        self._touched[name] = self.clock()
        return True

    def write(self, name: str, factors: Factors, base_model: str) -> bool:
        """Have an adapter in the folder; whether it was written now.

        Args:
            name: of `NAME`'s form.
            factors: of the adapter.
            base_model: that its configuration names.

        Raises:
            FullError: the disk is full.
            AwayError: the budget is used up by adapters that may be in use.
            OSError: the folder cannot be written for another reason.
        """
        assert NAME.fullmatch(name)
        with self._lock:
            if self.touch(name):
                return False
            tensors = [tensor for pair in factors.values() for tensor in pair]
            self._make_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors) + BESIDE)
            partial = self.path / self._partial(name.removeprefix(PREFIX))
            try:
                write_peft(partial, factors, base_model)
                for file in partial.iterdir():
                    _to_disk(file)
                size = _bytes(partial)
                partial.rename(self.path / name)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                if self.touch(name):  # another gateway was faster
                    return False
                if is_full(error) or "os error 28" in str(error) or "os error 122" in str(error):
                    raise FullError from error
                raise
            self.size += size
            self.written += 1
            return self.touch(name)

    def _make_room(self, more: int) -> None:
        if more > self.limit:
            raise AwayError(
                f"An adapter of {more} bytes is more than the gateway's folder may hold ({self.limit}; "
                "--adapter-bytes).",
                HOUR,
                "adapter_bytes",
            )
        found = self._scan()
        for used, name, size in sorted(found):
            if self.size + more <= self.limit:
                return
            if not self._uses[name] and self.clock() - used > self.keep and self._delete(name):
                self.size -= size
        if self.size + more > self.limit:
            raise AwayError(
                f"The gateway's folder of adapters holds {self.size} of {self.limit} bytes, and all may be in use. "
                "Come again later; more --adapter-bytes helps.",
                self.keep / 10,
                "adapter_bytes",
            )

    def _scan(self) -> list[tuple[float, str, int]]:
        """When each adapter was used last, its name and its bytes; what others have left is deleted."""
        found = []
        for path in self.path.iterdir():
            with suppress(FileNotFoundError):  # somebody else deletes, too
                if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    found.append((path.stat().st_mtime, path.name, _bytes(path)))
                elif PARTIAL.fullmatch(path.name) and self.clock() - path.stat().st_mtime > HOUR:
                    shutil.rmtree(path, ignore_errors=True)
        self.size = sum(size for _, _, size in found)
        return found

    def _delete(self, name: str) -> bool:
        """Delete an adapter; whether it has gone."""
        leaving = self.path / self._partial(name.removeprefix(PREFIX))
        try:
            (self.path / name).rename(leaving)
        except FileNotFoundError:
            return True
        self._touched.pop(name, None)
        if self.clock() - leaving.stat().st_mtime < self.keep:  # touched by another gateway a moment ago
            with suppress(OSError):
                leaving.rename(self.path / name)
                return False
        shutil.rmtree(leaving, ignore_errors=True)
        return True

    @staticmethod
    def _partial(digits: str) -> str:
        return f".{PREFIX}{digits}.{secrets.token_hex(8)}"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _to_disk(file: Path) -> None:
    """A file survives whatever comes now, and vLLM may read it, whoever it runs as."""
    file.chmod(0o644)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
