"""Metrics of answers against references, in [0, 1], each a function of sums of per-row statistics.

`Metric.row` turns an answer and its reference into a few numbers; `Metric.value` needs only the sums of those numbers
over rows. So the value of any resample of rows is one matrix product away, for corpus metrics too, and
stored rows need no texts. BLEU is sacrebleu's (Post 2018), ROUGE is rouge-score's (Lin 2004), token F1 is
SQuAD's (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.errors import HiloraError, InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDERS = 4
"""BLEU's n-grams have 1 to 4 words."""


@dataclass(frozen=True)
class Metric:
    """What to keep of a row, and what the sums over rows are worth.

    Args:
        name: as in `METRICS`.
        row: (answer, reference) to the row's statistics, always the same number of them.
        value: sums (..., stat) and number of rows (...) to values in [0, 1] of shape (...).
    """

    name: str
    row: Callable[[str, str], list[float]]
    value: Callable[[Floats, Ints], Floats]


def normalise(text: str) -> str:
    """The form in which exact match compares: NFKC, lower case, blanks folded, no punctuation at the ends."""
    folded = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return folded.strip(string.punctuation + string.whitespace)


def exact_match(answer: str, reference: str) -> float:
    """1 if answer and reference are the same after `normalise`."""
    return float(normalise(answer) == normalise(reference))


def exact(answer: str, reference: str) -> float:
    """1 if answer and reference are the same, letter case and punctuation included, but for white space."""
    return float(answer.split() == reference.split())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the two bags of words without case, punctuation and articles (SQuAD); 1 if both are empty."""
    bags = [Counter(_words(text)) for text in (answer, reference)]
    sizes = bags[0].total() + bags[1].total()
    # 2 P R / (P + R) with P = shared / |answer|, R = shared / |reference|
    return 2 * (bags[0] & bags[1]).total() / sizes if sizes else 1.0


def rouge(answer: str, reference: str, kind: str) -> float:
    """F-measure of shared words (rouge1), word pairs (rouge2) or longest common subsequence (rougeL), stemmed."""
    return float(_rouge_scorer(kind).score(reference, answer)[kind].fmeasure)


def bleu_stats(answer: str, reference: str) -> list[float]:
    """The 10 counts of one row: answer's and reference's length, n-grams that match, n-grams of the answer (13a)."""
    counted = _bleu_counter().corpus_score([answer], [[reference]])
    return [float(count) for count in (counted.sys_len, counted.ref_len, *counted.counts, *counted.totals)]


def bleu_value(sums: Floats, count: Ints) -> Floats:
    """Corpus BLEU of summed `bleu_stats` (..., 10), smoothed as by sacrebleu's default "exp"."""
    matched, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    # the k-th order without a match counts as 2^-k matches (Chen and Cherry 2014, method 3)
    missed = matched == 0
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, -1), matched)
    # BLEU = min(1, exp(1 - ref_len / sys_len)) * (prod_n matched_n / total_n)^(1/4)
    log_precision = np.log(smoothed / np.maximum(total, 1)).mean(-1)
    log_brevity = np.minimum(0, 1 - sums[..., 1] / np.maximum(sums[..., 0], 1))
    defined = ~missed.all(-1) & (total > 0).all(-1)
    return np.asarray(np.where(defined, np.exp(log_brevity + log_precision), 0.0))


def label_stats(answer: str, reference: str, labels: Sequence[str]) -> list[float]:
    """True positive, false positive, false negative of every label in turn: 3 * len(labels) numbers.

    Labels, answer and reference are compared as they are: normalised texts, or hashes of these. An answer that is
    no label is a false negative of the reference only.

    Raises:
        InputError: the reference is not among the labels.
    """
    if reference not in labels:
        raise InputError(f"Reference {reference!r} is not among the {len(labels)} labels: pass those of all rows.")
    out = []
    for label in labels:
        said, meant = answer == label, reference == label
        out += [float(said and meant), float(said and not meant), float(meant and not said)]
    return out


def label_value(sums: Floats, count: Ints) -> Floats:
    """Macro F1 of summed `label_stats` (..., 3 * label): the mean over the labels that occur among the references."""
    cells = sums.reshape(*sums.shape[:-1], -1, 3)
    hit, wrong, missed = cells[..., 0], cells[..., 1], cells[..., 2]
    occurs = hit + missed > 0
    f1 = np.where(occurs, 2 * hit / np.maximum(2 * hit + wrong + missed, 1), 0)
    return np.asarray(f1.sum(-1) / np.maximum(occurs.sum(-1), 1))


def label_metric(labels: Sequence[str]) -> Metric:
    """Macro F1 over the given labels, those of all of the task's references, as a metric called "label_f1"."""
    return Metric("label_f1", partial(label_stats, labels=tuple(labels)), label_value)


def label_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """Macro F1 over the labels that occur among the references; texts normalised beforehand, or hashes."""
    labels = sorted(set(references))
    rows = [label_stats(*pair, labels) for pair in zip(answers, references, strict=True)]
    return float(label_value(np.array(rows).sum(0), np.array(len(rows))))


def most_frequent(references: list[str]) -> str:
    """The most frequent reference: what a model may win by without reading its prompt."""
    counted = Counter(references)
    return max(sorted(counted), key=lambda reference: counted[reference])


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@cache
def _rouge_scorer(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise HiloraError("ROUGE needs rouge-score. Run: pip install 'hilora[evaluate]'") from error
    return RougeScorer([kind], use_stemmer=True)


@cache
def _bleu_counter() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise HiloraError("BLEU needs sacrebleu. Run: pip install 'hilora[evaluate]'") from error
    return BLEU(tokenize="13a", max_ngram_order=ORDERS)


def _mean(name: str, score: Callable[[str, str], float]) -> Metric:
    """The mean over rows of a score of single rows."""
    return Metric(
        name,
        row=lambda answer, reference: [score(answer, reference)],
        value=lambda sums, count: np.asarray(sums[..., 0] / np.maximum(count, 1)),
    )


METRICS: dict[str, Metric] = {
    "exact_match": _mean("exact_match", exact_match),
    "exact": _mean("exact", exact),
    "f1": _mean("f1", token_f1),
    **{kind: _mean(kind, partial(rouge, kind=kind)) for kind in ("rouge1", "rouge2", "rougeL")},
    "bleu": Metric("bleu", bleu_stats, bleu_value),
}
"""The metrics that need nothing but a row; "label_f1" needs the task's labels as well: `label_metric`."""
