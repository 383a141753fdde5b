"""hilora demo: prompts of several tasks, unlabelled and mixed, on the embedded default."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.rule import Rule

from hilora.cli.show import console, show_completion, status

PROMPTS = [
    "Is the sentiment of this movie review positive or negative?\n\n"
    "the plot limps along , but the two leads are a delight to watch .\n\nOPTIONS:\n- negative\n- positive",
    "Premise: A man in a yellow coat is fishing from a small boat.\n\n"
    "Hypothesis: Someone is on the water.\n\nIs the hypothesis entailed by the premise?\n"
    "OPTIONS:\n- yes\n- it is not possible to tell\n- no",
    "Write a short sentence that contains these words: child, kite, wind, park",
    "Please put the capital letters back:\n\nthe night train from vienna to prague leaves on monday .",
    "What is 37 + 58?",
    "What does this question ask for?\n\nWho designed the tower in the old harbour?\n\n"
    "OPTIONS:\n- description\n- entity\n- abbreviation\n- human\n- numeric\n- location",
    "Which topic is this news about?\n\nShares of the chip maker rose 4 percent after it raised its forecast.\n\n"
    "OPTIONS:\n- World\n- Sports\n- Business\n- Science/Tech",
    "Tell me a fact about the moon.",
]
"""Our own words, in the style of the pool's tasks; the last one belongs to none of them."""


def run(pool: str, prompts: Sequence[str] = PROMPTS) -> None:
    """Load, route, answer and explain; says how long each part took."""
    from hilora.engine.generate import HiLoRA

    start = time.perf_counter()
    with status("Loading the embedded base model (converted once on its first use, about 30 s)"):
        router = HiLoRA.from_pretrained(pool=pool)
    loaded = time.perf_counter()
    with status(f"Routing and answering {len(prompts)} prompts in one batch"):
        answers = router.generate(prompts, max_new_tokens=32)
    done = time.perf_counter()
    title = f"{len(prompts)} prompts, no labels, {len(router.planner.pool)} adapters"
    console.print(Rule(title), width=min(console.width, 100))  # in a pipe there is no width to fill
    console.print(f"[dim]pool: {', '.join(sorted(router.planner.pool.names))}[/]\n")
    for prompt, answer in zip(prompts, answers, strict=True):
        show_completion(prompt, answer)
    tokens = sum(answer.completion_tokens for answer in answers)
    console.print(
        f"[dim]loaded in {loaded - start:.1f} s; routed and answered in {done - loaded:.1f} s ({tokens} tokens). "
        f"Next: hilora generate 'your prompt' --pool {pool}[/]"
    )
