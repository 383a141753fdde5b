"""The page of `turns.py`: what is chosen on the first halves, and how it does on the second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.base.turns import LETTERS, NUMBERS, Size, num_routed_on
from hilora.evaluate.statistics import bootstrap, resamples, task_seed
from hilora.evaluate.tables import markdown_table

HALVES = ("first", "second")
METHODS = ("hilora", "hilora-plus", "mixture")
KEPT = {
    "first tokens": (1, 0),
    "last tokens": (0, 1),
    "1/2 + 1/2": (1 / 2, 1 / 2),
    "1/4 + 3/4": (1 / 4, 3 / 4),
    "1/8 + 3/8": (1 / 8, 3 / 8),
}
"""Way -> shares of what the embedder reads that are kept of a text's beginning and end."""
BEFORE = "before"
WORDS_OF_ALL = {"first tokens": BEFORE, "1/4 + 3/4": "1/4 + 3/4, all words"}
"""Way -> the same with the words of the whole text counted; "before" is how it was."""
LIMITS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 30)
"""Words up to which a user message may count as short."""
FOLLOWED, SWITCHED = "follow-up", "another task"
RESAMPLES = 2000

HARM = 0.01
"""Share of messages of another task that may be lost to what was there before."""
REAL = "as it is"
"""The prompts that are too long by themselves."""

Rows = dict[str, Any]
Policy = Callable[[Sequence[Size]], int]
"""Sizes of a chat's user messages -> how many of the last are routed on."""
Marks = NDArray[np.float64]
"""(prompt, method, 3): own adapter first, among three, first of its cluster."""


def report(result: dict[str, Any]) -> str:
    """The page."""
    setup, long, chats = result["setup"], result["long"], result["chats"]
    limit, kept = choose_limit(chats), choose_kept(long)
    policies = {
        "the last alone": lambda said: 1,
        "all": len,
        f"back to one of more than {limit} words": lambda said: num_routed_on(said, limit),
    }
    cases = list(dict.fromkeys(case_of(key) for key in long))
    talks = list(dict.fromkeys(case_of(key) for key in chats))
    return f"""# What of a prompt to route on

Made by `python reproduce/selection/turns.py --data DATA`; numbers in `turns.json`. Percent of test prompts of the
{setup["adapters"]} tasks of `pools/flan-mini` whose own adapter is the first (95 % interval, prompts resampled) /
among three, and in brackets whose first is of the right cluster. Chosen on the first halves of the prompts, shown on
the second.

## Texts that are too long

The embedder reads {setup["room"]} tokens beside the instruction.

* *first tokens*, *last tokens*: so many of a text; 1/4 + 3/4: a quarter of them of its beginning, the others of its
  end. `hilora-plus` counts the words of what is kept; *all words*: of the whole text. *before*: first tokens and all
  words, as it was.
* *mean*: of the embeddings of all parts, and all words; *best*: the largest score over the parts.
* A document of at least {setup["document"]} words, sentences (prose) or prompts of other tasks, before or behind the
  prompt.

First adapters right, methods and cases counted alike; of the ways that need one embedding and lose nothing on the
prompts as they are, **{kept}** is most often right:

{shares_of(long)}

On the second half:

{chr(10).join(long_table(long, case, kept) for case in cases)}
## Chats

{setup["follow_ups"]} follow-ups ("yes, go on") for either half. Right is the adapter of the prompt that they
follow; for "{SWITCHED}", that of the last message. A message is short if it has at most so many words, {LETTERS}
times as many characters, and {NUMBERS} number (`hilora/base/turns.py`). Chosen is the largest limit that loses at
most {100 * HARM:.0f} % of the messages of another task.

{limit_table(chats, limit)}
On the second half, routed on so many of the last user messages:

{chr(10).join(talk_table(chats, case, policies) for case in talks)}"""


def case_of(key: str) -> str:
    """The case of a row."""
    return key.split("/")[1]


def pick(rows: Rows, half: str, case: str) -> list[Any]:
    """The rows of a case."""
    return [row for key, row in rows.items() if key.startswith(f"{half}/{case}/")]


def written(places: Sequence[int], related: Sequence[bool]) -> str:
    """Of each method the place of the own adapter, from 0, and + where the first one is of its cluster, else -."""
    return " ".join(f"{place}{'+' if near else '-'}" for place, near in zip(places, related, strict=True))


def marks_of(found: Sequence[str]) -> Marks:
    """From what `written` makes of each prompt."""
    marks = [line.split() for line in found]
    places = np.array([[int(mark[:-1]) for mark in line] for line in marks])
    related = np.array([[mark[-1] == "+" for mark in line] for line in marks])
    return np.stack([places < 1, places < 3, related], axis=2).astype(np.float64)


def talk_marks(chats: Rows, half: str, case: str, policy: Policy) -> Marks:
    """What a policy finds in the chats of a case."""
    return marks_of(
        [row["last"][policy([Size(*size) for size in row["sizes"]]) - 1] for row in pick(chats, half, case)]
    )


def at_limit(chats: Rows, limit: int) -> tuple[Marks, Marks]:
    """What is found on the first half of follow-ups and of messages of another task."""
    followed, switched = (
        talk_marks(chats, HALVES[0], case, lambda said: num_routed_on(said, limit)) for case in (FOLLOWED, SWITCHED)
    )
    return followed, switched


def choose_limit(chats: Rows) -> int:
    """The largest limit that loses no more than `HARM` of the messages of another task, methods counted alike."""
    right = {limit: at_limit(chats, limit)[1][..., 0].mean() for limit in LIMITS}
    return max(limit for limit in LIMITS if right[limit] >= right[0] - HARM)


def first_share(long: Rows, way: str, cases: Iterable[str]) -> float:
    """The share of first adapters that are right on the first half, cases and methods counted alike."""
    found = [marks_of([row[way] for row in pick(long, HALVES[0], case)])[..., 0].mean() for case in cases]
    return float(np.mean(found))


def choose_kept(long: Rows) -> str:
    """Of the ways with one embedding that lose nothing on real prompts, the one that is most often right."""
    cases = dict.fromkeys(case_of(key) for key in long)
    least = first_share(long, BEFORE, [REAL])
    return max(
        (way for way in KEPT if first_share(long, way, [REAL]) >= least),
        key=lambda way: first_share(long, way, cases),
    )


def shares_of(long: Rows) -> str:
    """What the choice is made by, as a table."""
    cases = dict.fromkeys(case_of(key) for key in long)
    lines = [
        (way, f"{100 * first_share(long, way, [REAL]):.1f}", f"{100 * first_share(long, way, cases):.1f}")
        for way in next(iter(long.values()))
    ]
    return markdown_table(["first half", REAL, "all cases"], lines)


def cell(marks: Marks, name: str) -> str:
    """(prompt, 3) as text."""
    drawn = resamples(len(marks), RESAMPLES, task_seed(0, name)).astype(np.float64) @ marks[:, 0] / len(marks)
    first, three, cluster = 100 * marks.mean(0)
    interval = bootstrap(100 * drawn, first)
    return f"{first:.1f} ({interval.low:.1f} to {interval.high:.1f}) / {three:.1f} [{cluster:.1f}]"


def long_table(long: Rows, case: str, kept: str) -> str:
    """A case of texts that are too long."""
    rows = pick(long, HALVES[1], case)
    lines = []
    for way in rows[0]:
        marks = marks_of([row[way] for row in rows])
        name = f"**{way}**" if way == kept else way
        lines.append((name, *(cell(marks[:, i], case) for i in range(len(METHODS)))))
    table = markdown_table([f"{case}, {len(rows)} prompts", *METHODS], lines)
    return f"{table}\n"


def limit_table(chats: Rows, chosen: int) -> str:
    """The first half, by the limit."""
    lines = []
    for limit in LIMITS:
        followed, switched = (100 * marks[..., 0].mean(0) for marks in at_limit(chats, limit))
        name = f"**{limit}**" if limit == chosen else str(limit)
        lines.append((name, *(f"{f:.1f} / {s:.1f}" for f, s in zip(followed, switched, strict=True))))
    count = len(pick(chats, HALVES[0], FOLLOWED))
    heading = ["most words", *(f"{method}: {FOLLOWED} / {SWITCHED}" for method in METHODS)]
    return f"On the first half, {count} chats of each case:\n\n{markdown_table(heading, lines)}\n"


def talk_table(chats: Rows, case: str, policies: dict[str, Policy]) -> str:
    """A case of chats."""
    lines = []
    for name, policy in policies.items():
        marks = talk_marks(chats, HALVES[1], case, policy)
        lines.append((name, *(cell(marks[:, i], case) for i in range(len(METHODS)))))
    table = markdown_table([f"{case}, {len(marks)} chats", *METHODS], lines)
    return f"{table}\n"
