"""How often routing finds the right adapter, without any base model (RAMoLE Table II).

Every task is an adapter, known by sample texts; test prompts come unlabelled. Top k is the share of the prompts
whose own adapter is among the k best scores, equal scores in the order of the adapters' names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hilora.base import embed
from hilora.base.asked import shorten
from hilora.base.embed import Embedder, Remembering, describe_embedder
from hilora.base.outputs import check_file
from hilora.base.prompts import check_whole
from hilora.base.records import prompt_of, text_of
from hilora.base.threads import one_thread
from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.metrics import Floats
from hilora.evaluate.setup import setup
from hilora.evaluate.statistics import bootstrap, resamples, task_seed
from hilora.jsonl import numbered_lines
from hilora.route.experts import Experts
from hilora.route.features import Features, check_samples, hash_terms
from hilora.route.gaussian import OwnGaussian
from hilora.route.retriever import Retriever
from hilora.route.ridge import choose_ridge
from hilora.route.samples import Collection
from hilora.route.tied import TiedGaussian

TOPS = (1, 3, 5, 8)
"""The columns of RAMoLE's Table II, and the k of HiLoRA's bounds."""
RESAMPLES = 2000
STEP = 256  # texts between two calls of on_progress

Progress = Callable[[int, int], None]


@dataclass
class Scorer:
    """What ranks adapters: scores of texts, and what was chosen on the samples."""

    score: Callable[[Features], Tensor]
    settings: dict[str, Any]


def _cosine(samples: Sequence[Features]) -> Scorer:
    model = Retriever().fit(Collection(samples))
    return Scorer(lambda texts: model.score(texts.embeddings), {})


def own_scorer(samples: Sequence[Features], ridge: float | None = None) -> Scorer:
    """A Gaussian per adapter (HiLoRA Eq. 3); without a ridge, one is chosen on the samples."""
    embeddings = [own.embeddings for own in samples]
    chosen = choose_ridge(embeddings) if ridge is None else ridge
    with one_thread():  # each adapter's own matrix is small, however many there are
        model = OwnGaussian(chosen).fit(embeddings)
    return Scorer(lambda texts: model.score(texts.embeddings), {"ridge": model.ridge})


def _tied(samples: Sequence[Features]) -> Scorer:
    model = TiedGaussian(0.1).fit([own.embeddings for own in samples])
    return Scorer(lambda texts: model.score(texts.embeddings), {"shrinkage": model.shrinkage})


def _experts(samples: Sequence[Features]) -> Scorer:
    model = Experts().fit(samples)
    return Scorer(model.score, {"weights": {k: round(w, 6) for k, w in model.weights_.items()}})


SCORERS: dict[str, Callable[[Sequence[Features]], Scorer]] = {
    "cosine": _cosine,
    "own": own_scorer,
    "tied": _tied,
    "experts": _experts,
}
"""Name -> (the adapters' samples -> what scores prompts); all is chosen on the samples, as in a pool."""
METHOD_SCORERS = {"hilora": "own", "hilora-plus": "experts", "mixture": "cosine", "selection": "cosine"}
"""What methods rank adapters by."""


def read_samples(path: Path) -> dict[str, list[str]]:
    """Task -> texts, from JSON Lines with "task" and "inputs", or another shape of `base.records`.

    Raises:
        InputError: the file cannot be read or holds no rows, or a row is bad (names the line).
    """
    texts: dict[str, list[str]] = {}
    for number, line in numbered_lines(path):
        try:
            fields = json.loads(line)
            task, text = fields["task"], text_of(prompt_of(fields))
        except (ValueError, KeyError, TypeError, InputError):
            task = text = None
        if not (isinstance(task, str) and isinstance(text, str) and task.strip() and text.strip()):
            raise InputError(f'{path}, line {number}: expected {{"task": ..., "inputs": ...}}, got {line:.60}')
        check_whole(text, f"{path}, line {number}")
        texts.setdefault(task, []).append(text)
    if not texts:
        raise InputError(f'{path} holds no rows. Expected JSON Lines with "task" and "inputs".')
    return texts


def not_sampled(samples: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Task -> its test prompts without those that are samples of the same task, word for word.

    Raises:
        InputError: none is left.
    """
    left = {task: [text for text in asked if text not in samples.get(task, ())] for task, asked in test.items()}
    if not any(left.values()):
        raise InputError("Every test prompt is a sample of its own task: give prompts that routing has not seen.")
    return {task: asked for task, asked in left.items() if asked}


def evaluate_routing(
    samples: Mapping[str, Sequence[str]],
    test: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    embedder: Embedder,
    *,
    on_progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Top-k accuracy of each method.

    Args:
        samples: task -> the texts that its adapter is known by.
        test: task -> the prompts to route.
        methods: keys of `SCORERS` or `METHOD_SCORERS`.
        embedder: is given each text once.
        on_progress: called with (texts embedded, texts in all).

    Returns:
        per method shares of the test prompts "top1", "top3", "top5", "top8"; their number "n"; "intervals", the 95 %
        bootstrap interval of each share (prompts are drawn within their tasks, one that is asked twice as one);
        "tasks", top 1 by task; "settings", what was chosen on the samples.

    Raises:
        UnknownNameError: there is no such method.
        InputError: no method; a test task without samples; samples that no Gaussian fits.
    """
    scorers = _check(samples, test, methods)
    names, remembering = sorted(samples), Remembering(embedder)
    test = {task: [shorten(text, embedder)[0] for text in asked] for task, asked in test.items()}
    texts = list(dict.fromkeys(text for part in (samples, test) for task in part for text in part[task]))
    for start in range(0, len(texts), STEP):
        remembering(texts[start : start + STEP])
        if on_progress:
            on_progress(min(start + STEP, len(texts)), len(texts))
    worded = "experts" in scorers
    known = [look_at(list(samples[name]), remembering, worded) for name in names]
    if set(scorers) != {"cosine"}:
        for name, own in zip(names, known, strict=True):
            check_samples(own.embeddings, name)
    fitted = {scorer: SCORERS[scorer](known) for scorer in set(scorers)}
    num = sum(len(prompts) for prompts in test.values())
    first: dict[str, Floats] = {}  # task -> (method,)
    shares, drawn_rows = np.zeros((len(methods), len(TOPS))), np.zeros((RESAMPLES, 1))
    drawn = np.zeros((len(methods), RESAMPLES, len(TOPS)))
    for task in sorted(test):
        asked = Counter(test[task])
        query, place = look_at(list(asked), remembering, worded), names.index(task)
        times = np.array(list(asked.values()), dtype=np.float64)  # (prompt,)
        hits = np.stack([top_hits(fitted[scorer].score(query), place) for scorer in scorers])  # (method, prompt, top)
        first[task] = hits[:, :, 0] @ times / times.sum()
        shares += times @ hits / num
        # share_b = sum_p weight_bp hit_p / sum_p weight_bp, where a prompt weighs as often as it is asked
        weights = resamples(len(query), RESAMPLES, task_seed(0, task)) * times
        drawn += weights @ hits
        drawn_rows += weights.sum(1, keepdims=True)
    drawn /= drawn_rows
    found = {}
    for i, (method, scorer) in enumerate(zip(methods, scorers, strict=True)):
        intervals = {f"top{k}": bootstrap(drawn[i, :, j], float(shares[i, j])) for j, k in enumerate(TOPS)}
        found[method] = {
            **{top: round(interval.value, 6) for top, interval in intervals.items()},
            "n": num,
            "intervals": {top: [round(each.low, 6), round(each.high, 6)] for top, each in intervals.items()},
            "tasks": {task: round(float(means[i]), 6) for task, means in first.items()},
            "settings": fitted[scorer].settings,
        }
    return found


def look_at(texts: list[str], embed: Embedder, worded: bool) -> Features:
    """Texts as routing sees them."""
    return Features(embed(texts).cpu(), hash_terms(texts) if worded else None)


def top_hits(scores: Float[Tensor, "batch adapter"], own: int) -> Floats:
    """1 where the adapter `own` is among the k best of a row, for each k of `TOPS`: (batch, top)."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    place = (order == own).int().argmax(1).numpy()  # (batch,)
    return (place[:, None] < np.array(TOPS)).astype(np.float64)


def run_routing(
    samples: Path,
    test: Path,
    methods: Sequence[str],
    out: Path | None = None,
    embedder_name: str = embed.DEFAULT_EMBEDDER,
    instruction: str = embed.INSTRUCTION,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Read the files, measure, and write one JSON object {"setup", "methods"} to `out`, without any text.

    Test prompts that are samples of their own task are left out; "left_out" in the setup says how many.

    Raises:
        HiloraError: a file, a method or the embedder will not do.
    """
    if out is not None:
        check_file(out)
    known, all_asked = read_samples(samples), read_samples(test)
    _check(known, all_asked, methods)  # before a model is loaded
    asked = not_sampled(known, all_asked)
    embedder = embed.Embedder(embedder_name, instruction=instruction)
    found = evaluate_routing(known, asked, methods, embedder, on_progress=on_progress)
    left_out = sum(map(len, all_asked.values())) - sum(map(len, asked.values()))
    about = {"adapters": len(known), "resamples": RESAMPLES, "left_out": left_out}
    header = setup("hilora evaluate routing", embedder=asdict(describe_embedder(embedder)), **about)
    result = {"setup": header, "methods": found}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _check(samples: Mapping[str, object], test: Mapping[str, object], methods: Sequence[str]) -> list[str]:
    """The scorer of each method, where everything fits together."""
    if not methods:
        raise InputError(f"There is no method to measure. Give some of: {', '.join(SCORERS)}.")
    scorers = [METHOD_SCORERS.get(method, method) for method in methods]
    for method, scorer in zip(methods, scorers, strict=True):
        if scorer not in SCORERS:
            raise UnknownNameError("method", method, [*SCORERS, *METHOD_SCORERS])
    missing = sorted(test.keys() - samples.keys())
    if missing:
        raise InputError(f"Test rows of {missing[0]!r} have no adapter to find: no samples for {', '.join(missing)}.")
    return scorers
