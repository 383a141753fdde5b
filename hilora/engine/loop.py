"""The steps of the joining lane: rows join and leave a batch at any step.

    admit      waiting requests, first come first served, while rows and memory allow
    read       a slice of the prompts of those admitted
    step       one more token for every row that has been read
    release    rows that have ended

Prompts are read some tokens at a time: several short ones together, each slice as wide as its longest, or a part of a
long one, since on a CPU the activations of many tokens at once do not fit into the caches. No row depends on others.

Memory: buffers of keys and values never take more than `Loop.memory` at any moment; `batch` says how they count.

Waiting: first come, first served, and nobody overtakes. While somebody waits, each step reads a slice of a prompt, or
makes a token of every row, of those who came before. So he starts after at most the sum over those of

    ceil(len(ids) / SLICE) + most

steps, whoever comes later, however long his own prompt, and however much memory he wants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hilora.engine.batch import Batch, FixedBatch, join_fixed, joined_room, refusal, room_of
from hilora.engine.forward import Forward
from hilora.engine.pick import pick_tokens
from hilora.engine.rectangle import Rectangle
from hilora.engine.request import Request

SLICE = 2048
"""Prompt tokens, padding included, that are read at once."""
CARD_SLICE = 16384
"""The same on a GPU, which few do not fill."""
SHARE = 8
"""Rows that have ended leave when they are one in so many, or after so many steps: what they cost till then is less
than binding the others' plan anew."""
PATIENCE = 8
"""Steps that requests wait, where few rows are free, until more can be read at once: reading one costs nearly
what reading several does."""


class Loop:
    """Requests of one model, some steps each.

    Args:
        model: a decoder in evaluation mode whose rows may join and leave at any step.
        fill: the token that fills batches.
    """

    def __init__(self, model: Any, fill: int) -> None:
        self.forward = Forward(model, fill)
        self.layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
        self.memory = float("inf")  # bytes of all keys and values; of what starts from now on, where it is lowered
        self.per_token = 0  # bytes of those of one token, the largest layer's counted twice
        self.waiting: deque[Request] = deque()
        self.reading: Batch | None = None
        self.batches: list[Batch] = []
        self.ended: list[Request] = []  # since somebody last took them
        self.most = 32  # rows at once
        self._is_on_cpu = model.device.type == "cpu"
        self._patience = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.reading or self.batches)

    @property
    def num_bytes(self) -> int:
        """Of all keys and values."""
        return sum(batch.held.num_bytes for batch in self._all())

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

    @property
    def slice(self) -> int:
        """Prompt tokens, padding included, that are read at once."""
        return SLICE if self._is_on_cpu else CARD_SLICE

    def pause(self) -> None:
        """The model by itself, until the next step."""
        self.forward.close()

    def admit(self) -> None:
        """Take waiting requests whose prompts are read together, if no others are being read."""
        running = [request for batch in self.batches for request in batch.rows if not request.ended]
        room = self.most - len(running)
        if self.reading or not self.waiting or room < 1:
            return
        self._patience += 1
        if running and room * SHARE < self.most and self._patience <= PATIENCE:
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
        elif not self.batches:  # the budget was lowered while it waited
            one = self.waiting.popleft()
            self._end(one, refusal(len(one.ids), one.most, self.per_token, self.memory))

    def release(self) -> None:
        """Let go of rows that have ended, or that nobody wants any more."""
        for request in self._live():
            if request.cancelled:
                self._end(request)
        self.waiting = deque(request for request in self.waiting if not request.ended)
        if self.reading and all(request.ended for request in self.reading.rows):
            self.reading = None
        for batch in self.batches:
            self._guarded(batch, self._leave)
        self.batches = [batch for batch in self.batches if batch.rows]

    def take_ended(self) -> list[Request]:
        """Those that have ended since somebody last took them."""
        ended, self.ended = self.ended, []
        return ended

    def fail(self, error: Exception) -> list[Request]:
        """End all requests, for something that is none's own fault. Returns those that have ended."""
        self.pause()
        for request in self._live():
            self._end(request, error)
        self.waiting.clear()
        self.reading, self.batches = None, []
        return self.take_ended()

    @property
    def _is_followed(self) -> bool:
        """Whether somebody reads an answer as it comes."""
        return any(request.on_token for batch in self.batches for request in batch.rows)

    def _live(self) -> list[Request]:
        rows = [*self.waiting, *(request for batch in self._all() for request in batch.rows)]
        return [request for request in rows if not request.ended]

    def _all(self) -> list[Batch]:
        return [*self.batches, *filter(None, [self.reading])]

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        request.end(error)
        self.ended.append(request)

    def _goes_with(self, rows: Sequence[Request], one: Request) -> bool:
        """Whether a request may be read together with others, if there are any, or now, if there are none."""
        together = [*rows, one]
        if rows and rows[0].serve is not one.serve:
            return False
        if rows and max(len(request.ids) for request in together) * len(together) > self.slice:
            return False
        if one.serve.fixed is not None and not one.serve.fixed.has_room(together):
            return False
        return self._fits(room_of(together), self.batches)

    def _fits(self, room: int, others: Sequence[Batch]) -> bool:
        """Whether buffers for so many tokens fit into memory beside those of others."""
        return (room + sum(batch.room for batch in others)) * self.per_token <= self.memory

    def _guarded(self, batch: Batch, work: Callable[[Batch], None]) -> None:
        """A step that fails ends its own rows only."""
        try:
            work(batch)
        except Exception as error:  # noqa: BLE001  # whoever waits for them gets it
            self._fail(batch, error)

    def _fail(self, batch: Batch, error: Exception) -> None:
        self.pause()
        for request in batch.rows:
            if not request.ended:
                self._end(request, error)
        self.reading = None if batch is self.reading else self.reading
        batch.rows = []
        batch.held.drop()  # whoever keeps the error keeps no keys and values

    def _leave(self, batch: Batch) -> None:
        """Let those who have ended go, if it is worth it."""
        gone = [place for place, request in enumerate(batch.rows) if request.ended]
        if gone and (len(gone) * SHARE >= len(batch.rows) or batch.idle >= SHARE):
            batch.rows, batch.idle = [batch.rows[was] for was in batch.held.leave(gone)], 0
        batch.idle += bool(gone)

    def _read(self, batch: Batch) -> None:
        """The next slice of prompts; after the last one their first tokens, and they join the others."""
        each = max(1, self.slice // len(batch.rows))
        parts = [list(r.ids[r.read : r.read + each]) for r in batch.rows]
        assert len(parts) == 1 or all(len(p) == len(r.ids) for p, r in zip(parts, batch.rows, strict=True))
        logits = self.forward(batch, parts)
        for request, part, held in zip(batch.rows, parts, batch.held.lengths, strict=True):
            request.read_on(len(part))
            assert request.ended or held == request.held, "a row has lost count"
        if all(request.read == len(request.ids) for request in batch.rows):
            self.reading = None
            self._take(batch, logits)
            self._join(batch)

    def _step(self, batch: Batch) -> None:
        """One token more for each row."""
        last = [request.new[-1] for request in batch.rows]
        is_fixed = isinstance(batch, FixedBatch)
        step = batch.rows[0].serve.fixed.step if is_fixed else self.forward.step
        self._take(batch, step(batch, last))

    def _take(self, batch: Batch, logits: Tensor) -> None:
        for request, held in zip(batch.rows, batch.held.lengths, strict=True):
            assert request.ended or held == len(request.ids) + len(request.new), "a row has lost count"
        for request, token in zip(batch.rows, pick_tokens(batch.rows, logits), strict=True):
            if not request.ended:
                request.take(token)
                if request.ended:
                    self.ended.append(request)

    def _join(self, batch: Batch) -> None:
        """Put rows that have been read beside others of like length, if memory allows."""
        if batch.rows[0].serve.fixed is not None:
            join_fixed(batch, self.batches)
            return
        for other in self.batches:
            rest = [each for each in self.batches if each is not other]
            if not batch.is_like(other) or not self._fits(joined_room(batch, other), rest):
                continue
            try:
                other.held.join(batch.held)
            except Exception as error:  # some layers have joined, others have not
                self._fail(other, error)
                raise
            other.rows += batch.rows
            return
        self.batches.append(batch)
