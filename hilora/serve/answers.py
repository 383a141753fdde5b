"""A routed prompt -> what the engine does for it: requests of its own, or a batch that nobody joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hilora.base.answers import Answer
from hilora.engine.call import Call
from hilora.engine.closed import job_of
from hilora.engine.dispatch import joins
from hilora.engine.job import Job
from hilora.engine.joining import requests_of
from hilora.engine.lanes import Lanes
from hilora.engine.request import Request
from hilora.engine.stream import Pieces
from hilora.engine.thread import Work
from hilora.serve.asked import Done, Piece, TokenLog
from hilora.serve.logs import Noted, Recorded, Recorder, token_logs
from hilora.types import Choice, Completion

Tell = Callable[[Piece | Done | BaseException], None]


class Answers:
    """What the engine does for one prompt.

    Args:
        lanes: whose.
        call: what is asked; of its rows the one with that number.
        row: the number.
        copies: greedy answers that are all alike; 1 where each is made.
        top: alternatives of each token that are told; None for no log-probabilities.
        follow: pieces are told as they come.
        tell: takes pieces, ends, and what goes wrong, in the engine's thread.
        on_end: called with each of the works that has ended, likewise.

    Attributes:
        works: for `Engine.submit`.
        choices: why the prompt is served as it is.
    """

    def __init__(
        self,
        lanes: Lanes,
        call: Call,
        row: int,
        *,
        copies: int,
        top: int | None,
        follow: bool,
        tell: Tell,
        on_end: Callable[[Work], None],
    ) -> None:
        self.lanes, self.call, self.row, self.copies = lanes, call, row, copies
        self.top, self.follow, self.tell, self.on_end = top, follow, tell, on_end
        self.works: list[Work] = []
        self.choices: tuple[Choice, ...] = ()
        self.is_open = joins(lanes, call)
        if self.is_open:
            ((_, self.choices, requests),) = requests_of(lanes, call, [row])
            for number, request in enumerate(requests):
                self._open(request, number)
            self.works += requests
        else:
            self.works.append(self._closed())

    def _open(self, request: Request, number: int) -> None:
        """Have a request tell what it says."""
        noted: list[Noted] | None = None
        if self.top is not None:
            request.pick = recorded = Recorded(request.pick, self.top)
            noted = recorded.noted
        teller = Teller(self, number, noted)
        if self.follow:
            request.on_token = lambda request: teller.see(request.says)
        request.on_end = partial(self._ended, teller)

    def _ended(self, teller: Teller, request: Request) -> None:
        if request.error is not None:
            self.tell(request.error)
        elif not request.cancelled:
            teller.end(request.says.answer())
        self.on_end(request)

    def _closed(self) -> Job:
        """The same as a batch of its own."""
        call, recorder = self.call, None if self.top is None else Recorder(self.top)
        options = dict(call.options)
        if recorder is not None:
            options |= {"logits_processor": [recorder.processor], "stopping_criteria": [recorder.criterion]}
        first = Teller(self, 0, None)  # rows are noted as they begin, and only the first is followed
        follow = self.follow and call.copies == 1 and recorder is None
        found: dict[Job, list[tuple[int, list[Completion]]]] = {}
        own = replace(call, options=options, see=first.see if follow else None)
        if call.routed.route is not None:
            plan = self.lanes.planner.plan(call.routed, [self.row], call.seed)
            (self.choices,) = self.lanes.planner.choices(call.routed, [self.row], plan)
        job = job_of(self.lanes, own, [self.row], found)
        job.on_end = partial(self._job_ended, first, found, recorder)
        return job

    def _job_ended(self, first: Teller, found: Any, recorder: Recorder | None, job: Job) -> None:
        if job.error is not None:
            self.tell(job.error)
        elif not job.cancelled:
            ((_, completions),) = found[job]
            for number, each in enumerate(completions):
                noted = None if recorder is None else recorder.rows[number]
                teller = Teller(self, number, noted) if number or noted is not None else first
                teller.end(Answer(each.text, each.finish_reason, each.completion_tokens))
        self.on_end(job)


class Teller:
    """Tells what one answer says; in the engine's thread.

    Args:
        answers: whose.
        number: which of them.
        noted: what is noted of its tokens so far; None for nothing.
    """

    def __init__(self, answers: Answers, number: int, noted: Sequence[Noted] | None) -> None:
        self.answers, self.number, self.noted = answers, number, noted
        self._pieces = Pieces(self._piece)
        self.see = self._pieces.see
        self._told = 0

    def end(self, answer: Answer) -> None:
        """The whole answer."""
        if self.answers.follow:
            self._pieces.give(answer.text)
        logs = self._logs(0, answer.tokens)
        for number in range(self.answers.copies):
            self.answers.tell(Done(self.number + number, answer.text, answer.finish_reason, answer.tokens, logs))

    def _piece(self, text: str) -> None:
        logs = self._logs(self._told, None)
        self._told += len(logs)
        for number in range(self.answers.copies):
            self.answers.tell(Piece(self.number + number, text, logs))

    def _logs(self, start: int, stop: int | None) -> tuple[TokenLog, ...]:
        return () if self.noted is None else token_logs(self.noted[start:stop], self.answers.lanes.tokenizer)
