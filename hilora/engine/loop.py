"""The steps of the joining lane: rows join and leave a batch at any step.

    admit      waiting requests, first come first served, while rows and memory allow
    read       a slice of the prompts of those admitted
    step       one more token for every row that has been read
    release    rows that have ended

Prompts are read some tokens at a time: several short ones together, each slice as wide as its longest, or a part of a
long one, since on a CPU the activations of many tokens at once do not fit into the caches. What a row gets does not
depend on who else is there.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hilora.engine.cache import CACHE
from hilora.engine.pick import pick_tokens
from hilora.engine.rectangle import ROOM, Rectangle
from hilora.engine.request import Request, Serve

SLICE = 2048
"""Prompt tokens, padding included, that are read at once."""
SHARE = 8
"""Rows that have ended leave when they are one in so many, or after so many steps: what they cost till then is less
than binding the others' plan anew."""
WIDE = 2
"""A row joins others of up to so many times its length, or that many times shorter; else it steps with its like."""
SMALL = 256
"""Tokens below which lengths count as alike."""
PATIENCE = 4
"""Steps that a waiting request lets pass until there are others to be read with it."""


@dataclass(eq=False)
class Batch:
    """Rows that step together."""

    rows: list[Request]
    held: Rectangle
    idle: int = 0  # steps since the first of them ended


class Loop:
    """Requests of one model, some steps each.

    Args:
        model: a decoder in evaluation mode whose rows may join and leave at any step.
        fill: the token that fills batches.
    """

    def __init__(self, model: Any, fill: int) -> None:
        self.model, self.fill = model, fill
        self.layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
        self.per_token, self.memory = 0, float("inf")  # bytes: of the keys and values of one token, of all at once
        self.waiting: deque[Request] = deque()
        self.reading: Batch | None = None
        self.batches: list[Batch] = []
        self.ended: list[Request] = []  # since somebody last looked
        self.most = 32  # rows at once
        self._patience = 0
        self._serving: Serve | None = None
        known = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._placed = "position_ids" in known

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.reading or self.batches)

    @property
    def num_bytes(self) -> int:
        """Of all keys and values."""
        return sum(batch.held.num_bytes for batch in self._all())

    @torch.inference_mode()
    def weigh(self, one: Request) -> None:
        """Find out how many bytes the keys and values of a token take, by reading one, while nothing runs."""
        batch = Batch([one], Rectangle(self.layers, (1, 1)))
        batch.held.open(1)
        self._forward(batch, [one.ids[:1]])
        rows, columns = batch.held.size
        self.per_token = batch.held.num_bytes // (rows * columns)

    def step(self) -> None:
        """Everybody's next."""
        self.release()
        self.admit()
        reads = self.reading
        if reads:
            self._guarded(reads, self._read)
        if not reads or self.reading or self._is_followed:  # else what is read next steps with the others
            for batch in self.batches:
                self._guarded(batch, self._step)
        self.release()

    def pause(self) -> None:
        """The model by itself, until the next step."""
        if self._serving is not None:
            self._serving.close()
            self._serving = None

    def admit(self) -> None:
        """Take waiting requests whose prompts are read together, if no others are being read."""
        while self.waiting and self.waiting[0].cancelled:
            self._end(self.waiting.popleft())
        running = [request for batch in self.batches for request in batch.rows if not request.ended]
        room = self.most - len(running)
        if self.reading or not self.waiting or room < 1:
            return
        self._patience += 1
        if running and min(room, len(self.waiting)) * SHARE < self.most and self._patience <= PATIENCE:
            return
        self._patience = 0
        rows: list[Request] = []
        while self.waiting and len(rows) < room and self._goes_with(rows, self.waiting[0]):
            rows.append(self.waiting.popleft())
        for request in rows:
            request.begin()
        if rows:
            held = Rectangle(self.layers, (len(rows), max(len(request.ids) for request in rows)))
            held.open(len(rows))
            self.reading = Batch(rows, held)

    def release(self) -> None:
        """Let go of rows that have ended, or that nobody wants any more."""
        for batch in self._all():
            for request in batch.rows:
                if request.cancelled and not request.ended:
                    self._end(request)
        if self.reading and all(request.ended for request in self.reading.rows):
            self.reading = None
        for batch in self.batches:
            gone = [place for place, request in enumerate(batch.rows) if request.ended]
            if gone and (len(gone) * SHARE >= len(batch.rows) or batch.idle >= SHARE):
                batch.rows, batch.idle = [batch.rows[was] for was in batch.held.leave(gone)], 0
            batch.idle += bool(gone)
        self.batches = [batch for batch in self.batches if batch.rows]

    @property
    def _is_followed(self) -> bool:
        """Whether somebody reads an answer as it comes."""
        return any(request.on_token for batch in self.batches for request in batch.rows)

    def _all(self) -> list[Batch]:
        return [*self.batches, *filter(None, [self.reading])]

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        request.end(error)
        self.ended.append(request)

    def _goes_with(self, rows: Sequence[Request], one: Request) -> bool:
        """Whether a request may be read together with others, if there are any, or now, if there are none."""
        if rows:
            longest = max(len(request.ids) for request in (*rows, one))
            return rows[0].serve is one.serve and longest * (len(rows) + 1) <= SLICE and self._fits([*rows, one])
        return not self.batches or self._fits([one])

    def _fits(self, new: Sequence[Request]) -> bool:
        """Whether the keys and values of these and of all who are there fit into memory, to their last token."""
        groups = [list(new), *([*batch.rows, *new] for batch in self.batches)]
        tokens = [len(rows) * (max(len(r.ids) + r.most for r in rows) + ROOM) for rows in groups]
        there = [max(n * self.per_token, b.held.num_bytes) for n, b in zip(tokens[1:], self.batches, strict=True)]
        return tokens[0] * self.per_token + sum(there) <= self.memory

    def _guarded(self, batch: Batch, work: Callable[[Batch], None]) -> None:
        """A step that fails ends its own rows only."""
        try:
            work(batch)
        except Exception as error:  # noqa: BLE001  # whoever waits for them gets it
            self.pause()
            for request in batch.rows:
                if not request.ended:
                    self._end(request, error)
            self.reading = None if batch is self.reading else self.reading
            batch.rows = []

    def _read(self, batch: Batch) -> None:
        """The next slice of prompts; after the last one their first tokens, and they join the others."""
        each = max(1, SLICE // len(batch.rows))
        parts = [list(r.ids[r.read : r.read + each]) for r in batch.rows]
        assert len(parts) == 1 or all(len(p) == len(r.ids) for p, r in zip(parts, batch.rows, strict=True))
        logits = self._forward(batch, parts)
        for request, part in zip(batch.rows, parts, strict=True):
            request.read += len(part)
            assert 0 <= request.read <= len(request.ids)
        if all(request.read == len(request.ids) for request in batch.rows):
            self.reading = None
            self._take(batch, logits)
            self._join(batch)

    def _step(self, batch: Batch) -> None:
        """One token more for each row."""
        self._take(batch, self._forward(batch, [[request.new[-1]] for request in batch.rows]))

    def _take(self, batch: Batch, logits: Tensor) -> None:
        for request, held in zip(batch.rows, batch.held.lengths, strict=True):
            assert request.ended or held == len(request.ids) + len(request.new), "a row has lost count"
        for request, token in zip(batch.rows, pick_tokens(batch.rows, logits), strict=True):
            if not request.ended:
                request.take(token)
                if request.ended:
                    self.ended.append(request)

    def _join(self, batch: Batch) -> None:
        """Put rows that have been read beside others of like length."""
        width = batch.held.frame.width
        for other in self.batches:
            there = other.held.frame.width
            alike = max(width, there) <= max(SMALL, WIDE * min(width, there))
            if alike and other.rows and other.rows[0].serve is batch.rows[0].serve:
                other.held.join(batch.held)
                other.rows += batch.rows
                return
        self.batches.append(batch)

    def _forward(self, batch: Batch, parts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (row, vocabulary) behind the last of some more tokens of each row."""
        held, longest, serve = batch.held, max(map(len, parts)), batch.rows[0].serve
        held.make_room(longest)
        ids = torch.tensor([[self.fill] * (longest - len(part)) + list(part) for part in parts])
        fresh = (torch.arange(longest) >= torch.tensor([longest - len(part) for part in parts])[:, None]).long()
        where, options = self.model.device, {CACHE: held.cache, **self._last}
        if self._placed:
            starts = torch.tensor(held.lengths)[:, None]
            options["position_ids"] = (starts + fresh.cumsum(1) - 1).clamp_min(0).to(where)
        if serve is not self._serving:
            self.pause()
            self._serving = serve
        with serve(batch.rows):
            mask = torch.cat([held.mask, fresh], 1).to(where)
            out = self.model(input_ids=ids.to(where), attention_mask=mask, use_cache=True, **options)
        held.grew([len(part) for part in parts])
        logits: Tensor = out.logits[:, -1]
        return logits
