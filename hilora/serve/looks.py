"""What the tokens of a prompt and of an answer use: one pass of the model, in turns with everybody's steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hilora.analyse.activation import Activation, activation_of, shown_plan
from hilora.engine.job import Job
from hilora.engine.lanes import Lanes
from hilora.engine.thread import Work
from hilora.planner import Routed
from hilora.serve.asked import Ask, Looked
from hilora.serve.faults import ServiceError
from hilora.serve.room import room
from hilora.types import Choice

Tell = Callable[[Looked | BaseException], None]
DIGITS = 4
"""Of the numbers that are told."""


class Look:
    """A look at one routed prompt and the answer that came with it.

    Args:
        lanes: whose.
        routed, row: the prompt's route.
        given: token ids of the prompt.
        ask: holds the answer.
        most: tokens of both that are looked at.
        called: what the caller calls adapters that are chosen.
        tell: takes what is seen, or what goes wrong, in the engine's thread.
        on_end: called with the work when it has ended, likewise.

    Attributes:
        works: for `Engine.submit`.
        choices: why the prompt is served as it is.

    Raises:
        InputError: no adapter serves the prompt, or the base model has an encoder.
        ServiceError: there are more tokens.
    """

    def __init__(
        self,
        lanes: Lanes,
        routed: Routed,
        row: int,
        given: Sequence[int],
        ask: Ask,
        *,
        most: int,
        called: Callable[[Choice], str],
        tell: Tell,
        on_end: Callable[[Work], None],
    ) -> None:
        planner = lanes.planner
        plan = shown_plan(lanes.model, planner, routed, row, ask.seed)
        said = list(lanes.tokenizer(ask.answer or "", add_special_tokens=False)["input_ids"])
        if len(given) + len(said) > most:
            raise ServiceError(
                f"Prompt and answer have {len(given)} and {len(said)} tokens; at most {most} together are looked at.",
                "context_length_exceeded",
                "answer",
            )
        if said:
            room(lanes, len(given), len(said), most)
        self.called, self.tell, self.on_end = called, tell, on_end
        (self.choices,) = planner.choices(routed, [row], plan)
        self._found: list[Activation] = []
        gate, source = planner.method.gate, routed.source
        see = partial(activation_of, lanes.model, lanes.tokenizer, gate, source, plan, given, said)
        self.works: list[Work] = [Job(lambda job: self._found.append(see()), self._ended)]

    def _ended(self, job: Job) -> None:
        if job.error is not None:
            self.tell(job.error)
        elif not job.cancelled:
            self.tell(self._looked(self._found.pop()))
        self.on_end(job)

    def _looked(self, found: Activation) -> Looked:
        columns = [found.names.index(choice.name) for choice in self.choices]
        used, added = found.counts(list(found.used)), found.shares()
        return Looked(
            tokens=tuple(found.tokens),
            num_prompt=found.num_prompt,
            adapters=tuple(self.called(choice) for choice in self.choices),
            rocs_used=_plain(used[:, columns].tolist()),
            share_added=_plain(added[:, columns].tolist()),
        )


def _plain(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, DIGITS) for value in row) for row in rows)
