"""Adapters on their way to a card, from when it is known that somebody will need them until they are laid out.

    route known   a thread reads and packs an adapter (`pool.flat`), and starts      the card computes, and rows that
                  a copy on a stream of its own                                      are there take their steps
    laid out      the stream of the steps waits for the copy, if it has not ended

Where the base is on no card nothing is done ahead: reading would take the steps' time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from hilora.pool.flat import Block, Flat, Placement, pack, placed
from hilora.pool.memory import Memory
from hilora.pool.view import Source


class Streams:
    """A stream of each card for copies, beside the one of the steps."""

    def __init__(self) -> None:
        self._of: dict[torch.device, Any] = {}

    def start(self, flat: Flat) -> tuple[Flat, list[Any]]:
        """Start copying an adapter to where it goes. Returns what comes of it, and events of its arrival."""
        events = []

        def move(block: Block) -> Tensor:
            where, _ = block.goes
            if where.type != "cuda":
                return placed(block)
            if where not in self._of:
                self._of[where] = torch.cuda.Stream(where)
            with torch.cuda.stream(self._of[where]):
                data = placed(block)
            events.append((where, self._of[where].record_event()))
            return data

        return flat.moved(move), events

    def join(self, flat: Flat, events: list[Any]) -> Flat:
        """What has been copied, for the current streams: they wait for it, and its memory for them."""
        for where, event in events:
            torch.cuda.current_stream(where).wait_event(event)
        for block in flat.blocks:
            if block.data.device.type == "cuda":
                block.data.record_stream(torch.cuda.current_stream(block.data.device))
        return flat


class Ahead:
    """Brings adapters to the cards of a model, before they are laid out where that can be.

    Args:
        memory: keeps them in host memory.
        placements: where the model's modules compute.
        streams: do the copies.

    Attributes:
        cold: content hashes of adapters that were in no memory when expected; whoever counts takes them out.
    """

    def __init__(self, memory: Memory, placements: Mapping[str, Placement], streams: Streams | None = None) -> None:
        self.memory, self.placements, self.streams = memory, placements, streams or Streams()
        self.cold: set[str] = set()
        self._coming: OrderedDict[str, Future[tuple[Flat, list[Any]] | None]] = OrderedDict()
        self._bytes: dict[str, int] = {}  # of those that have come, and are not laid out yet: within memory's limit
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hilora ahead")

    def expect(self, content: str, source: Source) -> None:
        """An adapter will be needed, unless it is on its way already."""
        with self._lock:
            if self.memory.limit and content not in self._coming:
                self._coming[content] = self._worker.submit(self._bring, content, source)

    def factors(self, content: str, source: Source) -> Flat:
        """An adapter where the model computes, for the current streams."""
        found = self._come(content)
        return self.packed(content, source).moved(placed) if found is None else self.streams.join(*found)

    def wait(self) -> None:
        """Until all that was expected has been read."""
        with self._lock:
            coming = list(self._coming.values())
        wait(coming)

    def packed(self, content: str, source: Source) -> Flat:
        """An adapter in host memory."""
        found = self.memory.get(content, lambda: pack(source.factors(content), self.placements))
        return found if isinstance(found, Flat) else pack(found, self.placements)  # a method may have kept it so

    def _come(self, content: str) -> tuple[Flat, list[Any]] | None:
        """What was expected; None if it was not, or could not be read, or has to wait for others to be read."""
        with self._lock:
            coming = self._coming.pop(content, None)
        found = None if coming is None or coming.cancel() or coming.exception() else coming.result()
        with self._lock:
            self._bytes.pop(content, None)
        return found

    def _bring(self, content: str, source: Source) -> tuple[Flat, list[Any]] | None:
        flat = self.packed(content, source)
        size = sum(block.data.numel() * block.goes[1].itemsize for block in flat.blocks)
        with self._lock:
            while self._bytes and sum(self._bytes.values()) + size > self.memory.limit:
                first = next(iter(self._bytes))
                self._coming.pop(first, None)
                del self._bytes[first]
            if size > self.memory.limit:
                return None
            self._bytes[content] = size
        return self.streams.start(flat)


def ahead_of(memory: Memory, placements: Mapping[str, Placement]) -> Ahead | None:
    """What brings adapters to a model's cards, one for all who share a memory; None where it is on none."""
    if memory.ahead is None and any(where.type == "cuda" for where, _ in placements.values()):
        memory.ahead = Ahead(memory, placements)
    found: Ahead | None = memory.ahead
    return found
