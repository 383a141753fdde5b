"""selection.json as a page of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from hilora.evaluate.goals import is_met, shown
from hilora.evaluate.routing import TOPS
from hilora.evaluate.tables import markdown_table
from hilora.route.novelty import UNSEEN_SHARE

TARGET = (85.0, 97.5, 99.2, 99.8)
TRAINED = (74.1, 97.4, 99.2, 99.8)
NAMES = {
    "cosine": "cosine to the mean of the samples",
    "own": "hilora (Eq. 3): a Gaussian per adapter with its own covariance",
    "tied": "a Gaussian per adapter with one covariance for all",
    "experts": "hilora-plus: meaning, spelling, phrases and outline, weighted by cross-fitted likelihood",
}
TITLES = {"ramole48": "RAMoLE's 48 tasks", "flan_mini": "The pool's tasks"}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def retrieval_table(found: Mapping[str, Any]) -> str:
    heading = ("samples", "method", "top 1 (95 % interval)", "top 3", "top 5", "top 8")
    rows: list[tuple[str, ...]] = []
    for count, methods in found["retrieval"].items():
        for method, (first, *rest, (low, high)) in methods.items():
            shown = f"{percent(first)} ({percent(low)} to {percent(high)})"
            rows.append((count, method, shown, *map(percent, rest)))
    return markdown_table(heading, rows)


def goals_table(shares: Sequence[float]) -> str:
    """Top 1, 3, 5, 8 beside their goals, compared before they are rounded."""
    rows = []
    for k, share, least, trained in zip(TOPS, shares, TARGET, TRAINED, strict=False):
        goal = f">= {least}"
        verdict = "reached" if is_met(100 * share, goal) else "missed"
        rows.append((f"top {k}", f"{trained}", goal, shown(100 * share, goal), verdict))
    return markdown_table(("", "paper", "goal", "hilora-plus", ""), rows)


def conformal_table(found: Mapping[str, Any]) -> str:
    heading = (
        "alpha",
        "promised",
        "coverage, resplits",
        "as used",
        "size",
        "from the samples: coverage",
        "as used (95 %)",
        "size",
        "fixed number of that size",
    )
    rows = []
    for alpha, each in found["conformal"].items():
        coverage, used, size = each["resplits"]
        own, own_used, own_size, spread = each["samples"]
        rows.append(
            (
                alpha,
                percent(1 - float(alpha)),
                f"{100 * coverage:.2f}",
                percent(used),
                f"{size:.2f}",
                percent(own),
                f"{percent(own_used)} ± {percent(spread)}",
                f"{own_size:.2f}",
                percent(at_size(found["top"], own_size)),
            )
        )
    return markdown_table(heading, rows)


def at_size(top: list[float], size: float) -> float:
    """Coverage of the `size` best on average: some prompts get the next whole number."""
    whole = int(size)
    if whole >= len(top):
        return top[-1]
    return top[whole - 1] + (size - whole) * (top[whole] - top[whole - 1])


def novelty_table(found: Mapping[str, Any]) -> str:
    names = list(found["novelty"]["own"]["auroc"])
    heading = ("removed", *(f"AUROC: {name}" for name in names), "seen prompts called unseen", "unseen called unseen")
    rows = []
    for kind, each in found["novelty"].items():
        cells = [f"{each['auroc'][name]:.3f}" for name in names]
        rows.append((kind, *cells, *map(percent, each["called_unseen"])))
    return markdown_table(heading, rows)


def report(result: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        "# Selecting adapters from unlabelled prompts",
        "Made by `python reproduce/selection/selection.py --data DATA`; numbers in `selection.json`. Percent, unless "
        "it says otherwise. Nothing is trained; what is chosen is chosen on the samples by cross-validation.",
        "\n".join(f"* **{name}**: {what}." for name, what in NAMES.items()),
    ]
    for name, title in TITLES.items():
        found = result[name]
        eq4 = found["eq4"]
        parts += [
            f"## {title}: {found['tasks']} tasks, {found['prompts']} test prompts",
            "### Own adapter among the best k",
            retrieval_table(found),
        ]
        if name == "ramole48":
            parts += [
                "hilora-plus with the most samples beside the goal set before; in RAMoLE's paper, a retriever of 1.5 "
                "billion parameters, trained on all tasks:",
                goals_table(list(found["retrieval"].values())[-1]["experts"]),
            ]
        parts += [
            "### Conformal sets",
            conformal_table(found),
            "Resplits: threshold from a random half of the test prompts, coverage on the other, mean of "
            f"{result['setup']['resplits']}. From the samples: threshold from cross-fitted samples alone, as in a "
            "pool. As used: no set is left empty, so that coverage cannot fall below top 1. The fixed number takes "
            "the same scores' best k, some prompts k + 1, so that the mean size is equal.",
            f"HiLoRA's Eq. 4 on its own scores: {percent(eq4['coverage'])} at a mean size of {eq4['size']:.2f}.",
            "### Seen or unseen",
            novelty_table(found),
            "Each test prompt once with all adapters and once without its own adapter, those of its family (rows of "
            "one kind collected twice, such as anli r1 to r3) or those of its cluster; everything is fitted anew "
            f"without them. The threshold comes from the samples: {UNSEEN_SHARE:.0%} of seen samples lie below it.",
        ]
    return "\n\n".join(parts) + "\n"
