"""Which way a call's rows go: they join others step by step, or run whole as a batch of their own.

*Joining*: bases of the class "open" (`engine.batching`), with options whose effect on a row depends on that row alone
(`engine.asked`). *Closed*: everything else, by transformers' own generation, batch after batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from hilora.base.answers import Answer, Reading
from hilora.base.models import first_line
from hilora.base.modules import placements
from hilora.base.padding import pad_batch
from hilora.base.prompts import pad_id
from hilora.base.rows import Order, orders, rows_apart
from hilora.engine.asked import can_join, pick_of
from hilora.engine.bank import Bank, row_plans
from hilora.engine.batching import Batching, ServeRows, generate_whole
from hilora.engine.ended import row_ends
from hilora.engine.pick import draw_key
from hilora.engine.probe import batching_of
from hilora.engine.request import Request
from hilora.engine.sampling import SeededSampling, split_sampling
from hilora.engine.thread import Job, Work, drive, engine_of
from hilora.errors import InputError
from hilora.planner import Planner, Routed
from hilora.pool.memory import Memory
from hilora.types import Choice, Completion


@dataclass(frozen=True)
class Call:
    """What one call asks for."""

    routed: Routed
    encoded: Mapping[int, Sequence[int]]  # of each row: its prompt's tokens
    seed: int
    stops: Sequence[str]
    options: Mapping[str, Any]  # of generation, `max_new_tokens` among them
    events: SimpleQueue[Any] = field(default_factory=SimpleQueue)  # where what has ended comes
    see: Callable[[Reading], None] | None = None  # somebody reads the answer as it comes

    @property
    def copies(self) -> int:
        """Answers to each prompt."""
        return int(self.options.get("num_return_sequences") or 1)


class Lanes:
    """The rows of all calls of one `HiLoRA`.

    Args:
        model, tokenizer, planner, memory: its own.
        form, packed: how deltas are worked out.
    """

    def __init__(
        self, model: Any, tokenizer: Any, planner: Planner, memory: Memory, *, form: str, packed: bool
    ) -> None:
        self.model, self.tokenizer, self.planner, self.memory = model, tokenizer, planner, memory
        self.fill = pad_id(tokenizer)
        self.engine = engine_of(model, self.fill)
        self.bank = Bank(model, planner.method.gate, placements(model), memory, form, packed)
        self._batching: Batching | None = None

    @property
    def batching(self) -> Batching:
        """How rows may run on this base model."""
        if self._batching is None:
            with self.engine.alone():
                self._batching = batching_of(self.model, self.fill)
        return self._batching

    def answers(self, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
        """(row, its completions) as they end; texts of a call that somebody follows in between.

        Args:
            call: what is asked.
            rows: which of its rows.
            at_once: how many share a forward pass at most.
        """
        asked = [row for row in rows if row not in call.routed.silent]
        for row in rows:
            if row in call.routed.silent:
                note, read = call.routed.notes[row], len(call.encoded[row])
                silent = Completion("", "abstain", (), self.planner.method.name, read, 0, note)
                yield row, [silent] * call.copies
        if not asked:
            return
        joins = (
            self.batching is Batching.OPEN
            and can_join(call.options, self.model.generation_config)
            and not self._is_mixed(call.routed)
        )
        self.engine.loop.most = max(at_once, self.engine.loop.most if self.engine.loop.busy else 0)
        lane = self._joining if joins else self._closed
        yield from lane(call, asked, at_once)

    def _is_mixed(self, routed: Routed) -> bool:
        """Whether a module that adapters may change cannot tell the rows of a batch apart."""
        found = orders(self.model)
        return routed.route is not None and any(order is Order.MIXED for order in found.values())

    # --- the joining lane

    def _joining(self, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
        left: dict[int, list[Request]] = {}
        of: dict[Request, tuple[int, tuple[Choice, ...]]] = {}

        def works() -> Iterator[Work]:
            for start in range(0, len(rows), at_once):
                for row, choices, requests in self._requests(call, rows[start : start + at_once]):
                    left[row] = list(requests)
                    for request in requests:
                        of[request] = row, choices
                        yield request

        made: dict[int, list[Request]] = {}
        for event in drive(self.engine, works(), at_once * call.copies, call.events):
            if not isinstance(event, Request):
                yield event
                continue
            row, choices = of.pop(event)
            made.setdefault(row, []).append(event)
            if len(made[row]) == call.copies:
                del made[row]
                yield row, [self._completion(call, row, r.says.answer(), choices) for r in left.pop(row)]

    def _requests(self, call: Call, rows: Sequence[int]) -> Iterator[tuple[int, tuple[Choice, ...], list[Request]]]:
        """Each row with why it is served as it is, and a request for each of its answers."""
        routed, defaults = call.routed, self.model.generation_config
        options, sampling = split_sampling(dict(call.options), defaults)
        ending = row_ends(self.model, self.tokenizer, call.stops, options, 0)
        plans: list[Any] = [None] * len(rows)
        choices: list[tuple[Choice, ...]] = [()] * len(rows)
        if routed.route is not None:
            plan = self.planner.plan(routed, rows, call.seed)
            plans, choices = row_plans(plan, routed.source), self.planner.choices(routed, rows, plan)
        see = call.see
        for row, plan, why in zip(rows, plans, choices, strict=True):
            text = routed.texts[row]
            picks = [
                pick_of(call.options, defaults, sampling, sorted(ending.ends.tokens), call.seed, text, answer)
                for answer in range(call.copies)
            ]
            yield (
                row,
                why,
                [
                    Request(
                        call.encoded[row],
                        call.options["max_new_tokens"],
                        ending.ends.read(()),
                        pick,
                        self.bank,
                        plan,
                        on_token=None if see is None else lambda request: see(request.says),
                    )
                    for pick in picks
                ],
            )

    # --- the closed lane

    def _closed(self, call: Call, rows: Sequence[int], at_once: int) -> Iterator[Any]:
        found: dict[Job, list[tuple[int, list[Completion]]]] = {}

        def works() -> Iterator[Work]:
            for start in range(0, len(rows), at_once):
                batch = rows[start : start + at_once]
                job = Job(lambda job, batch=batch: found.__setitem__(job, self._whole(call, batch, job)))  # type: ignore[misc]
                yield job

        for event in drive(self.engine, works(), 1, call.events):
            if isinstance(event, Job):
                yield from found.pop(event)
            else:
                yield event

    def _whole(self, call: Call, rows: Sequence[int], job: Job) -> list[tuple[int, list[Completion]]]:
        """Answers of one batch; in the engine's thread."""
        ids, mask = self.padded([list(call.encoded[row]) for row in rows])
        kwargs, sampling = split_sampling(dict(call.options), self.model.generation_config)
        answers = call.copies
        if sampling is not None:
            keys = [draw_key(call.seed, call.routed.texts[r], n) for r in rows for n in range(answers)]
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or ()), SeededSampling(keys, **sampling)]
            if answers > 1:  # greedy search returns one answer per row, so the rows are multiplied here
                kwargs.pop("num_return_sequences")
                ids, mask = ids.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
        if kwargs.get("pad_token_id") is None:
            kwargs["pad_token_id"] = self.fill
        ending = row_ends(self.model, self.tokenizer, call.stops, kwargs, ids.shape[1])
        ending.wanted, ending.see = lambda: not job.cancelled, call.see
        copies = len(ids) // len(rows)
        serve, choices, apart = self.planned(call.routed, rows, call.seed)
        try:
            new = generate_whole(
                self.model,
                ids,
                mask,
                kwargs,
                lambda live: serve([place // copies for place in live]),
                ending,
                alone=apart or self._batching is Batching.ALONE,
            )
        except ValueError as error:  # transformers' own checks of options that do not go together
            raise InputError(f"The generation options do not fit together: {first_line(error)}") from error
        said = [ending.answer(tokens, row) for row, tokens in enumerate(new.tolist())]
        return [
            (row, [self._completion(call, row, answer, why) for answer in said[p * answers : (p + 1) * answers]])
            for p, (row, why) in enumerate(zip(rows, choices, strict=True))
        ]

    def padded(self, encoded: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (batch, seq) of prompts, as the model reads them."""
        left = not self.model.config.is_encoder_decoder
        ids, mask = pad_batch(encoded, self.fill, left=left)
        return ids.to(self.model.device), mask.to(self.model.device)

    def _completion(self, call: Call, row: int, answer: Answer, why: tuple[Choice, ...]) -> Completion:
        asked, note = len(call.encoded[row]), call.routed.notes[row]
        return Completion(
            answer.text, answer.finish_reason, why, self.planner.method.name, asked, answer.tokens, note
        )

    def planned(
        self, routed: Routed, rows: Sequence[int], seed: int
    ) -> tuple[ServeRows, list[tuple[Choice, ...]], bool]:
        """What makes the model serve some of these rows, each row's choices, and whether they must run one by one."""
        if routed.route is None:
            return lambda places: nullcontext(), [() for _ in rows], False
        plan = self.planner.plan(routed, rows, seed)
        sites = self.bank.sites_of(plan, routed.source)
        return (
            self.bank.bind(sites, plan),
            self.planner.choices(routed, rows, plan),
            rows_apart(self.model, sites, plan),
        )
