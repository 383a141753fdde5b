"""Metrics of answers against references, each in [0, 1].

Exact match compares after a stated normalisation: Unicode NFKC, lower case, without leading and trailing
white space and punctuation, inner white space folded to one blank. ROUGE-L is rouge-score's, with stemming.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable

from hilora.errors import HiloraError

Metric = Callable[[str, str], float]


def normalise(text: str) -> str:
    """The form in which exact match compares."""
    folded = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return folded.strip(string.punctuation + string.whitespace)


def exact_match(answer: str, reference: str) -> float:
    """1 if answer and reference are the same after `normalise`."""
    return float(normalise(answer) == normalise(reference))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (rouge-score, stemmed)."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise HiloraError("ROUGE needs rouge-score. Run: pip install 'hilora[reproduce]'") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def most_frequent(references: list[str]) -> str:
    """The most frequent reference: what a model may win by without reading its prompt."""
    counted: dict[str, int] = {}
    for reference in references:
        counted[reference] = counted.get(reference, 0) + 1
    return max(sorted(counted), key=lambda reference: counted[reference])


METRICS: dict[str, Metric] = {"exact_match": exact_match, "rouge_l": rouge_l}

GENERATIVE = re.compile(r"common_gen|e2e_nlg|dart|web_nlg|samsum|dialogsum|fix_punct|true_case|spelling")
"""Tasks whose answers are sentences: ROUGE-L; all others: exact match."""


def metric_for(task: str) -> str:
    """The metric's name of a task of the flan_mini family."""
    return "rouge_l" if GENERATIVE.search(task) else "exact_match"
