"""What is to be measured, and with what: a job and its bench. What cannot run is refused before anything does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hilora.base.embed import Embedder, Remembering
from hilora.base.embedded import shown_name
from hilora.base.prompts import encode_prompts
from hilora.base.quantised import quantised_as
from hilora.errors import InputError
from hilora.evaluate.batches import answer_limits, schedule
from hilora.evaluate.lines import Line
from hilora.evaluate.metrics import METRICS
from hilora.evaluate.settings import Case
from hilora.evaluate.setup import setup
from hilora.methods.lookup import get_method
from hilora.pool.trained import trained_path
from hilora.pool.view import PoolView

CONSTANT = "constant"
WORLD = ("base", "adapters", "ridge", "dtype", "seed")
"""What of the setup decides answers."""
ANSWERS = 1
"""To be raised when methods or metrics change what is answered or scored: no older answers are taken then."""


@dataclass(frozen=True)
class Job:
    """What one run measures.

    Attributes:
        setting: name of the setting, written with every row.
        cases: all its cases.
        methods: label -> (method name, options); the label is written with every row. "constant" is a method
            here, which gives every row of a task the same answer.
        constant: task -> that answer (`lines.constant_answers`).
        max_new_tokens, batch_size, seed: of generation; the first is the most for any task.

    Raises:
        InputError: "constant" is to be measured on a task that it has no answer for.
    """

    setting: str
    cases: Sequence[Case]
    methods: dict[str, tuple[str, dict[str, Any]]]
    constant: Mapping[str, str] = field(default_factory=dict)
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        measured = {name for name, _ in self.methods.values()}
        missing = sorted({case.row.task for case in self.cases} - self.constant.keys())
        if CONSTANT in measured and missing:
            raise InputError(
                f"{CONSTANT} gives each task's most frequent training answer, and none is known of "
                f"{', '.join(missing)}. Give --train, lines of their training data, or leave {CONSTANT} away."
            )


@dataclass
class Bench:
    """What methods are measured with.

    Args:
        pool, model, tokenizer, embedder: as for `HiLoRA`.
        job: what to measure.
    """

    pool: PoolView
    model: Any
    tokenizer: Any
    embedder: Embedder
    job: Job
    encoded: list[list[int]] = field(init=False, repr=False)
    limits: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, options in self.job.methods.values():
            if name != CONSTANT:
                get_method(name, **options)  # refused before anything runs
        rows = [case.row for case in self.job.cases]
        for name in {name for row in rows for name in row.metrics if name in METRICS}:
            METRICS[name].row("a", "a")  # a metric whose package is missing is known now, not in an hour
        self.encoded = encode_prompts([row.inputs for row in rows], self.tokenizer)
        self.limits = answer_limits(rows, self.tokenizer, self.job.max_new_tokens)
        self.embedder = Remembering(self.embedder)

    def batches(self, numbers: Sequence[int]) -> list[list[int]]:
        """Batches of the numbers of cases that are to be answered, the same whenever they are asked for."""
        job = self.job
        lengths = [len(ids) for ids in self.encoded]
        return list(schedule(job.cases, lengths, self.limits, job.batch_size, job.seed, numbers))

    def header(self, name: str, **more: Any) -> Line:
        """The setup line of a results file: what its rows were made with.

        Args:
            name: of the command.
            more: what else belongs to it; `part` and `per_task` are compared when a file is gone on with.
        """
        return setup(
            name,
            base=shown_name(self.pool.base.name),
            dtype=str(self.model.dtype).removeprefix("torch."),
            quantised=quantised_as(self.model),
            adapters={entry.name: entry.hash[:16] for entry in self.pool.entries},
            ridge=self.pool.ridge,
            max_new_tokens=self.job.max_new_tokens,
            batch_size=self.job.batch_size,
            seed=self.job.seed,
            parts=self.parts(),
            **more,
        )

    def parts(self) -> dict[str, str]:
        """Label -> hash of its trained part, for methods that have one; of its answers, for the constant one."""
        found = {}
        for label, (name, options) in self.job.methods.items():
            if name == CONSTANT:
                answers = sorted(self.job.constant.items())
                found[label] = hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]
                continue
            part = get_method(name, **options).part
            if part is not None and (path := trained_path(self.pool.path, part)).exists():
                found[label] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return found

    def world(self, label: str) -> str:
        """All that a method's answers depend on beside routes and rows, as a text."""
        header = self.header("") | {"base": self.pool.base.name}
        quantised = filter(None, [header["quantised"]])  # left out where it is not: answers from before count on
        return repr([ANSWERS, *(header[key] for key in WORLD), header["parts"].get(label), *quantised])
