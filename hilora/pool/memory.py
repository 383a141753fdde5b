"""Adapters and stacks of them in memory: made when first asked for, given up by bytes, the least used first."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from hilora.errors import InputError
from hilora.pool.flat import Flat
from hilora.types import Rocs

T = TypeVar("T")

LIMIT = "512MB"
"""Default budget: some five hundred adapters of rank 8 on a 135M model."""
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?b)?\s*", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """A number of bytes, or a text such as "512MB" or "2 GiB".

    Raises:
        InputError: it is neither, or below 0.
    """
    found = SIZE.fullmatch(str(size))
    if found is None:
        raise InputError(
            f"{size!r} is no amount of memory. Give bytes, or a number with kB, MB, GB, KiB, MiB or GiB."
        )
    return int(float(found[1]) * UNITS[(found[2] or "").lower()])


def num_bytes(value: object) -> int:
    """Bytes of the tensors in a value: of a tensor, of stacked ROCs, of mappings and sequences of such."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Flat):
        return value.num_bytes
    if isinstance(value, Rocs):
        return num_bytes(vars(value))
    if isinstance(value, Mapping):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(num_bytes, value))
    return 0


class Memory:
    """What was made once and may be of use again, up to a number of bytes.

    Args:
        limit: bytes, as for `parse_bytes`.

    Attributes:
        used: bytes of what is kept.
        loads: adapters that were loaded, or made of others; `evicted`: given up since. Stacks are not counted.
        hits: adapters that were there when a request came for them (`use`).
    """

    def __init__(self, limit: int | str = LIMIT) -> None:
        self.limit = parse_bytes(limit)
        self.used = self.loads = self.hits = self.evicted = 0
        self.ahead: Any = None  # what brings them to a card (`engine.ahead`)
        self._kept: OrderedDict[str, tuple[object, int, bool]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.local()

    def get(self, key: str, make: Callable[[], T], *, stack: bool = False) -> T:
        """The value under a key, made if it is not there; the least recently used go where the limit is passed.

        A value that is larger than the limit is not kept. Two threads may make one value, neither waits. Where making
        it asks for the same key again, as of a source that keeps what it makes, that is no second value.

        Args:
            key: of the value.
            make: gives it.
            stack: it is of several adapters that are, or were, here.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(T, self._kept[key][0])
        making: set[str] = vars(self._making).setdefault("keys", set())
        if key in making:
            return make()
        making.add(key)
        try:
            value = make()
        finally:
            making.discard(key)
        size = num_bytes(value)
        with self._lock:
            self.loads += not stack
            _, before, was_stack = self._kept.pop(key, (None, 0, True))  # of another thread
            self.evicted += not was_stack
            self.used += size - before
            self._kept[key] = (value, size, stack)
            while self.used > self.limit:
                _, (_, gone, was_stack) = self._kept.popitem(last=False)
                self.used -= gone
                self.evicted += not was_stack
        return value

    def use(self, keys: Iterable[str], there: Container[str] = ()) -> None:
        """A request comes for adapters: those that are here, or anywhere else in memory, are counted as hits.

        Args:
            keys: of the adapters.
            there: those that are laid out already, or will be before it is served.
        """
        with self._lock:
            self.hits += sum(key in self._kept or key in there for key in keys)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)
