"""hilora demo: prompts of several tasks, unlabelled and mixed, on the embedded default.

The prompts are a shop window: of about a hundred of our own that were tried, these were chosen among those that
`hilora-plus` answers right with a margin, in fp32 and in bf16 (reproduce/demo). How often it is right on prompts that
nobody chose is in README's table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.rule import Rule

from hilora.cli.show import console, show_completion, status
from hilora.types import Completion

if TYPE_CHECKING:
    from hilora.engine.generate import HiLoRA

METHOD = "hilora-plus"
TOKENS = 32


@dataclass(frozen=True)
class Shown:
    """A prompt of the demo.

    Attributes:
        prompt: in our own words.
        right: the answer that is right.
        worded: "task" as the training data of a task of the pool asks, "own" as none of it does, "unseen" if it is
            about nothing that the pool was trained for.
    """

    prompt: str
    right: str
    worded: str


def is_right(answer: str, right: str) -> bool:
    """Whether an answer is the right one, letter case and punctuation included."""
    return answer.split() == right.split()


PROMPTS = (
    Shown(
        "The room was spotless and breakfast was wonderful. What does this guest think of the hotel: negative or "
        "positive?",
        "positive",
        "own",
    ),
    Shown("What is 127 + 250?", "377", "task"),
    Shown(
        "Please add spaces between words: Thechildrenwalkedtoschoolintherain.",
        "The children walked to school in the rain.",
        "task",
    ),
    Shown("What is the plural of mouse?", "mice", "unseen"),
    Shown(
        "My friend wrote to me: i feel so alone since she moved away . "
        "Is that sadness, joy, love, anger, fear or surprise?",
        "sadness",
        "own",
    ),
    Shown(
        "Which of these categories fits the article?\n\n"
        "The home side came from two goals down to win the cup final in extra time.\n\n"
        "OPTIONS:\n- World\n- Sports\n- Business\n- Science/Tech",
        "Sports",
        "task",
    ),
    Shown(
        "Fact or opinion? Reply objective or subjective.\n"
        "two brothers leave their village to look for their father in the city .",
        "objective",
        "own",
    ),
    Shown(
        'What kind of thing would answer the question "How many steps lead up to the tower ?"?\n\n'
        "OPTIONS:\n- description\n- entity\n- abbreviation\n- human\n- numeric\n- location",
        "numeric",
        "task",
    ),
)
"""In our own words; half of them are worded as training data is, and the fourth is unseen."""


def run(pool: str | None) -> None:
    """Load, route, answer and explain; says how long each part took."""
    from hilora.engine.generate import HiLoRA

    start = time.perf_counter()
    with status("Loading the embedded base model (converted once on its first use, about 30 s)"):
        router = HiLoRA.from_pretrained(pool=pool, method=METHOD)
    loaded = time.perf_counter()
    tokens = show_answers(router, PROMPTS)
    done = time.perf_counter()
    named = f" --pool {escape(pool)}" if pool else ""
    console.print(
        f"[dim]loaded in {loaded - start:.1f} s; routed and answered in {done - loaded:.1f} s ({tokens} tokens). "
        f"Next: hilora generate 'your prompt'{named}[/]"
    )


def show_answers(router: HiLoRA, prompts: Sequence[Shown]) -> int:
    """Print answers with their reasons, and which of them are right; returns how many tokens they have."""
    with status(f"Routing and answering {len(prompts)} prompts in one batch"):
        answers = router.generate([each.prompt for each in prompts], max_new_tokens=TOKENS)
    title = f"{len(prompts)} prompts, no labels, {len(router.planner.pool)} adapters"
    console.print(Rule(title), width=min(console.width, 100))  # in a pipe there is no width to fill
    console.print(f"[dim]pool: {', '.join(sorted(router.planner.pool.names))}[/]\n")
    num_right = 0
    for shown, answer in zip(prompts, answers, strict=True):
        num_right += is_right(answer.text, shown.right)
        show_completion(shown.prompt, answer, verdict=verdict(shown, answer))
    console.print(
        f"{num_right} of {len(prompts)} are right: they were chosen as prompts that {METHOD} answers well over "
        f'pools/flan-mini. For prompts that nobody chose see README, "Methods, measured".',
        highlight=False,
    )
    return sum(answer.completion_tokens for answer in answers)


def verdict(shown: Shown, answer: Completion) -> str:
    """Whether an answer is right, and what became of a prompt that no adapter knows."""
    wrong = f"[red]wrong, right is: {escape(shown.right)}[/]"
    said = "[green]right[/]" if is_right(answer.text, shown.right) else wrong
    if answer.choices and not any(choice.seen for choice in answer.choices):
        count = len(answer.choices)
        said += f" [yellow](unseen: no adapter knows such prompts, so the {count} nearest answer together)[/]"
    return said
