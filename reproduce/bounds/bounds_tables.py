"""bounds.json as tables, with what they say in words."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from hilora.evaluate.routing import TOPS
from hilora.evaluate.tables import markdown_table

NAMES = {"own": "a covariance per adapter", "tied": "one covariance for all"}
RATES = ("bound", "drawn", "held", "test")
SHOWN = 6
"""Every so many unseen tasks are in the table, by name; all are in the numbers."""


def report(result: dict[str, Any]) -> str:
    """The tables and what they say, as Markdown."""
    about, ks = result["setup"], result["ks"]
    parts = [
        f"""# HiLoRA's error bounds, and what is measured

Made by `python reproduce/bounds/bounds.py --data RAMOLE48`; numbers in `bounds.json`. {about["adapters"]} tasks with
{about["samples"]} samples and {about["prompts"]} test prompts in all; embedder {about["embedder"]["name"]}. "own":
{NAMES["own"]} (HiLoRA Eq. 3, ridge {about["ridge"]:.1e}, chosen on the samples); "tied": {NAMES["tied"]}
(shrinkage {about["shrinkage"]}). A prompt misses its adapter among the k best when k or more rivals score at least as
high. Shares are in percent.

## In short
""",
        "".join(summary(name, result[name], ks) for name in NAMES),
        "\n## Seen tasks: Theorem 1, mean over the adapters\n",
        markdown_table(
            ["k", *(f"{name}: {what}" for name in NAMES for what in ("bound", "drawn", "held out", "test"))],
            [
                [
                    str(k),
                    *(percent(over_tasks(result[name]["seen"][what], ks, k)) for name in NAMES for what in RATES),
                ]
                for k in ks
            ],
        ),
        f"""
"drawn": {about["draws"]} random prompts from each fitted Gaussian, of which the theorem speaks. "held out": samples
that neither mean nor covariance has seen (5-fold cross-fitting). "test": test prompts.

## Seen tasks: Lemma 3 with halves, mean over the adapters

The pool is fitted to every other sample; q, from which prompts are taken to come, to the samples in between. So the
bound knows how far an adapter's prompts lie from its own Gaussian. "no promise": adapters whose bound is 1.
""",
        markdown_table(
            ["k", *(f"{name}: {what}" for name in NAMES for what in ("bound", "no promise", "test"))],
            [[str(k), *(cell for name in NAMES for cell in halved(result[name]["halves"], ks, k))] for k in ks],
        ),
        "\n## Unseen tasks: Theorem 2\n",
        f"""Each task in turn is left out of the pool; q is the Gaussian of its samples, i* the adapter with the
smallest KL(q || p). Every {SHOWN}th task by name, and the mean over all; k = {", ".join(map(str, TOPS))}.
""",
        *(unseen_table(name, result[name]["unseen"], ks) for name in NAMES),
        "\n## Seen tasks, adapter by adapter\n",
        f"""The bound is min(1, sum / k), where sum = sum_j exp(-B_ij) over the rivals, here as a plain number. Missed
in percent for k = {", ".join(map(str, TOPS))}. "lost": held-out samples that score at least as high under the nearest
rival.
""",
        *(adapter_table(name, result[name]["seen"], ks) for name in NAMES),
        "\n## What `hilora.analyse.confusion.diagnose` says\n",
        *(flagged(name, result[name]["flags"]) for name in NAMES),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def summary(name: str, found: dict[str, Any], ks: Sequence[int]) -> str:
    """What the numbers say, in words."""
    seen, left = found["seen"], found["unseen"].values()
    rates = {what: percent(over_tasks(seen[what], ks, 1)) for what in RATES}
    above = sum(seen["test"][task][0] > row[0] for task, row in seen["bound"].items())
    half, nothing, half_test = halved(found["halves"], ks, 1)
    half_bound = found["halves"]["bound"]
    above_half = sum(
        test > bound
        for task, row in half_bound.items()
        for test, bound in zip(found["halves"]["test"][task], row, strict=True)
    )
    empty = sum(row["bound"][0] >= 1 for row in left)
    broken = sum(row["test"][i] > row["bound"][i] for row in left for i in range(len(ks)))
    allowed, missed = (
        [percent(mean(row[what][ks.index(k)] for row in left)) for k in (1, 8)] for what in ("bound", "test")
    )
    return f"""* **{name}**, seen tasks: Theorem 1 promises that no more than {rates["bound"]} % of the prompts miss
  their adapter (k = 1). Of random prompts from the Gaussians {rates["drawn"]} % do, of held-out samples
  {rates["held"]} %, of test prompts {rates["test"]} %, on {above} of {len(seen["bound"])} adapters more than
  promised: real prompts are no draws from Gaussians that were fitted to 20 samples. With halves, Lemma 3 allows
  {half} % ({nothing} adapters without a promise), and {half_test} % of the test prompts miss. Above that bound:
  {above_half} of {len(half_bound) * len(ks)} pairs of task and k.
* **{name}**, unseen tasks: Theorem 2 allows {allowed[0]} % of the prompts to miss i* at k = 1, {allowed[1]} % at
  k = 8; {missed[0]} % and {missed[1]} % do. At k = 1 {empty} of {len(left)} tasks are without a promise. Above the
  bound: {broken} of {len(left) * len(ks)} pairs of task and k.
"""


def halved(found: dict[str, Any], ks: Sequence[int], k: int) -> list[str]:
    nothing = sum(row[ks.index(k)] >= 1 for row in found["bound"].values())
    bound, test = (percent(over_tasks(found[what], ks, k)) for what in ("bound", "test"))
    return [bound, f"{nothing} of {len(found['bound'])}", test]


def at_tops(rates: Sequence[float], ks: Sequence[int]) -> str:
    return " / ".join(percent(rates[ks.index(k)]) for k in TOPS)


def unseen_table(name: str, found: dict[str, Any], ks: Sequence[int]) -> str:
    whats = ("bound", "drawn", "test")
    rows = [
        [task, row["nearest"], f"{row['alpha']:.2g}", *(at_tops(row[what], ks) for what in whats)]
        for task, row in list(found.items())[::SHOWN]
    ]
    means = [[mean(column) for column in zip(*(row[what] for row in found.values()), strict=True)] for what in whats]
    rows.append([f"mean of {len(found)}", "", "", *(at_tops(row, ks) for row in means)])
    return markdown_table([f"{name}: left out", "i*", "median alpha", *whats], rows)


def adapter_table(name: str, found: dict[str, Any], ks: Sequence[int]) -> str:
    rows = [
        [
            task,
            rival,
            f"{distance:.1f}",
            percent(lost),
            f"{total:.1e}",
            *(at_tops(found[w][task], ks) for w in RATES[2:]),
        ]
        for task, (rival, distance, lost, total) in found["nearest"].items()
    ]
    return markdown_table([f"{name}: adapter", "nearest rival", "B", "lost", "sum exp(-B)", "held out", "test"], rows)


def flagged(name: str, found: dict[str, Any]) -> str:
    """Near-duplicates and captures, and one adapter's advice in full."""
    pairs = {tuple(sorted((one, other))) for one, others in found["duplicates"].items() for other in others}
    captures = (f"{one} ({got / fair:.1f} times)" for one, (got, fair) in found["captures"].items())
    first, *advice = found["longest"]
    return f"""* {name}: near-duplicates are {", ".join(map(" and ".join, sorted(pairs))) or "none"}; first on others'
  samples far more often than its fair share: {", ".join(captures) or "none"}. The advice for {first}:
{chr(10).join(f"  * {line}" for line in advice)}"""


def percent(share: float) -> str:
    """In percent, with one decimal, or one digit where that would be 0."""
    return f"{100 * share:.1f}" if share >= 5e-4 or share == 0 else f"{100 * share:.1g}"


def over_tasks(rates: Mapping[str, Sequence[float]], ks: Sequence[int], k: int) -> float:
    """Mean over tasks."""
    return mean(row[ks.index(k)] for row in rates.values())
