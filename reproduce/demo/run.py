"""The demo's prompts: what was tried, what was chosen, and whether their answers are right, by seed and dtype.

    python reproduce/demo/run.py                   # minutes: tried.jsonl, answers.jsonl, README.md
    python reproduce/demo/run.py --only answers    # after other prompts have been chosen
    python reproduce/demo/run.py --only table      # README.md again, from the rows

candidates.jsonl holds every prompt that was tried, with the answers that are right (case and punctuation included),
and how it is worded: as training data of a task asks ("task"), as none of it does ("own"), or about nothing that the
pool was trained for ("unseen").
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from hilora import HiLoRA
from hilora.cli.demo import METHOD, PROMPTS, TOKENS, is_right
from hilora.cli.options import quiet_transformers
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import json_line, read_lines

HERE = Path(__file__).parent
POOL = "pools/flan-mini"
DTYPES = ("fp32", "bf16")
SEEDS = range(5)
MARGIN = 2.0
PAPER = "hilora"
WORDED = {
    "task": "worded as a task's training data is",
    "own": "worded as no training data is",
    "unseen": "about nothing that the pool was trained for",
}
Rows = list[dict[str, Any]]


class Margin(LogitsProcessor):  # type: ignore[misc]
    """Records how much likelier each token of an answer is than the next best, in nats; changes nothing."""

    def __init__(self) -> None:
        self.nats: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the scores (1, vocabulary) of one row."""
        best, second = scores[0].float().log_softmax(-1).topk(2).values.tolist()
        self.nats.append(best - second)
        return scores


def routers(*methods: str) -> Iterator[tuple[str, str, HiLoRA]]:
    """(method, dtype, router), one loaded at a time."""
    for method in methods:
        for dtype in DTYPES:
            yield method, dtype, HiLoRA.from_pretrained(pool=POOL, method=method, dtype=dtype)


def tried() -> Rows:
    """Each candidate answered by itself, in each dtype; `margin` is that of the answer's least certain token."""
    rows = []
    candidates = read_lines(HERE / "candidates.jsonl")
    for _, dtype, router in routers(METHOD):
        for number, each in enumerate(candidates):
            margin = Margin()
            (answer,) = router.generate(each["prompt"], max_new_tokens=TOKENS, logits_processor=[margin])
            rows.append(
                {
                    "number": number,
                    "dtype": dtype,
                    "text": answer.text,
                    "right": any(is_right(answer.text, right) for right in each["right"]),
                    "margin": round(min(margin.nats), 2),
                    "adapters": answer.adapters,
                    "seen": any(choice.seen for choice in answer.choices),
                }
            )
    return rows


def answered() -> Rows:
    """The demo's prompts by each method, dtype and seed, in one batch as the demo has them and by themselves."""
    rows = []
    asked = [shown.prompt for shown in PROMPTS]
    for method, dtype, router in routers(METHOD, PAPER):
        for seed in SEEDS:
            for batch in (len(asked), 1):
                answers = router.generate(asked, max_new_tokens=TOKENS, seed=seed, batch_size=batch)
                for number, (shown, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
                    about = {"method": method, "dtype": dtype, "seed": seed, "batch": batch, "number": number}
                    rows.append(about | {"text": answer.text, "right": is_right(answer.text, shown.right)})
    return rows


def choosable(candidates: Rows, rows: Rows) -> list[int]:
    """Numbers of the candidates that are right in every dtype, with the margin."""
    good = [{row["number"] for row in rows if row["dtype"] == dtype and may_show(row)} for dtype in DTYPES]
    return [number for number in range(len(candidates)) if all(number in own for own in good)]


def may_show(row: dict[str, Any]) -> bool:
    """Whether an answer is right, and surely so."""
    return bool(row["right"] and row["margin"] >= MARGIN)


def page(candidates: Rows, rows: Rows, answers: Rows) -> str:
    """README.md."""
    good = choosable(candidates, rows)
    head = ["prompts", "tried", *(f"right, {dtype}" for dtype in DTYPES), "choosable", "shown"]
    shown = {each.prompt for each in PROMPTS}
    tries = []
    for kind, words in WORDED.items():
        own = [number for number, each in enumerate(candidates) if each["worded"] == kind]
        right = [
            sum(row["right"] for row in rows if row["number"] in own and row["dtype"] == dtype) for dtype in DTYPES
        ]
        chosen = sum(candidates[number]["prompt"] in shown for number in own)
        tries.append([words, *map(str, (len(own), *right, sum(number in good for number in own), chosen))])
    by_run = []
    for method in (METHOD, PAPER):
        for dtype in DTYPES:
            cells = [
                "/".join(
                    str(sum(row["right"] for row in answers if run_of(row) == (method, dtype, seed, batch)))
                    for batch in (len(PROMPTS), 1)
                )
                for seed in SEEDS
            ]
            by_run.append([f"`{method}`, {dtype}", *cells])
    return PAGE.format(
        margin=MARGIN,
        tried=markdown_table(head, tries),
        count=len(PROMPTS),
        runs=markdown_table(["", *(f"seed {seed}" for seed in SEEDS)], by_run),
        method=METHOD,
        paper=PAPER,
    )


def run_of(row: dict[str, Any]) -> tuple[str, str, int, int]:
    """The run that an answer is of."""
    return row["method"], row["dtype"], row["seed"], row["batch"]


PAGE = """# The demo's prompts

    python reproduce/demo/run.py

What `hilora demo` and the README show is a shop window, and was chosen as one. The prompts of
[candidates.jsonl](candidates.jsonl), in our own words, were answered one by one by `{method}` over `pools/flan-mini`
([rows](tried.jsonl)). A prompt may be shown if its answer is right in both dtypes and each of its tokens is at least
{margin:g} nats likelier than the next. Some were written after the others had been answered, so these counts are no
measure of the method: that is [the table of held-out prompts](../hilora/results.md).

{tried}

Of the {count} prompts shown, so many are right, in one batch / each by itself ([rows](answers.jsonl)). `{method}`
draws nothing, so its seeds differ only if something is wrong; `{paper}`, the paper's method, draws its allocation:

{runs}
"""


def write(name: str, rows: Rows) -> None:
    """A setup line and the rows."""
    lines = [setup("reproduce/demo/run.py", pool=POOL, method=METHOD), *rows]
    (HERE / name).write_text("".join(json_line(line) + "\n" for line in lines), encoding="utf-8")


def read(name: str) -> Rows:
    """The rows, without the setup."""
    return list(read_lines(HERE / name)[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=("tried", "answers", "table"))
    only = parser.parse_args().only
    quiet_transformers()
    if only in (None, "tried"):
        write("tried.jsonl", tried())
    if only in (None, "answers"):
        write("answers.jsonl", answered())
    text = page(read_lines(HERE / "candidates.jsonl"), read("tried.jsonl"), read("answers.jsonl"))
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
