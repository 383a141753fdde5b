"""Routing without a base model: top-k accuracy by its definition, with scores worked out from theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from hilora.base.embed import Embedder
from hilora.errors import InputError, UnknownNameError
from hilora.evaluate.routing import (
    METHOD_SCORERS,
    RESAMPLES,
    SCORERS,
    STEP,
    TOPS,
    evaluate_routing,
    not_sampled,
    read_samples,
    run_routing,
    top_hits,
)
from hilora.evaluate.statistics import resamples, task_seed
from hilora.evaluate.tables import routing_rows
from hilora.route.experts import Experts
from hilora.route.features import Features, Terms, hash_terms

Texts = dict[str, list[str]]


def made_up(count: int, seed: int, num_tasks: int = 10) -> Texts:
    """Texts of tasks that mostly share their letters, so that some prompts go astray."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijkl"))
    weights = np.random.default_rng(0).dirichlet(np.full(len(letters), 6.0), num_tasks)
    return {
        f"task {i}": ["".join(rng.choice(letters, 25, p=weights[i])) for _ in range(count + i % 2)]
        for i in rng.permutation(num_tasks).tolist()
    }


def fewer(texts: list[str]) -> Terms:
    """The first character buckets only: a covariance of all of them takes a second to factor."""
    terms = hash_terms(texts)
    return Terms(terms.characters[:, :64].contiguous(), terms.phrases, terms.text)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilora.evaluate.routing.hash_terms", fewer)


def looked_at(texts: list[str], embedder: Any) -> Features:
    return Features(embedder(texts), fewer(texts))


def numbers(samples: list[Features]) -> list[np.ndarray]:
    return [own.embeddings.double().numpy() for own in samples]


def cosine(known: list[Features], prompt: Features, settings: dict[str, Any]) -> list[float]:
    (z,) = prompt.embeddings.double().numpy()
    means = [part.mean(0) for part in numbers(known)]
    return [float(mean @ z / np.linalg.norm(mean) / np.linalg.norm(z)) for mean in means]


def own(known: list[Features], prompt: Features, settings: dict[str, Any]) -> list[float]:
    (z,) = prompt.embeddings.double().numpy()
    ridge = settings["ridge"] * np.eye(len(z))
    return [multivariate_normal.logpdf(z, part.mean(0), np.cov(part.T) + ridge) for part in numbers(known)]


def tied(known: list[Features], prompt: Features, settings: dict[str, Any]) -> list[float]:
    (z,), samples = prompt.embeddings.double().numpy(), numbers(known)
    centred = np.concatenate([part - part.mean(0) for part in samples])
    pooled = centred.T @ centred / (len(centred) - len(samples))
    a = settings["shrinkage"]
    pooled = (1 - a) * pooled + a * np.trace(pooled) / len(z) * np.eye(len(z))
    return [multivariate_normal.logpdf(z, part.mean(0), pooled) for part in samples]


def experts(known: list[Features], prompt: Features, settings: dict[str, Any]) -> list[float]:
    """Its own formulas have tests of their own; here, that the stated weights on these samples give the ranks."""
    found: list[float] = fitted(tuple(known), tuple(settings["weights"].items())).score(prompt)[0].tolist()
    return found


@cache
def fitted(known: tuple[Features, ...], weights: tuple[tuple[str, float], ...]) -> Experts:
    return Experts(dict(weights)).fit(known)


SCORES: dict[str, Callable[..., list[float]]] = {"cosine": cosine, "own": own, "tied": tied, "experts": experts}


@pytest.fixture
def opened(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake embedder wherever one is loaded."""
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **_: embedder)
    return embedder


def write(path: Path, texts: Texts) -> Path:
    rows = [{"task": task, "inputs": text, "targets": "t"} for task in texts for text in texts[task]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# top k


@pytest.mark.parametrize("method", SCORERS)
def test_top_k_is_the_share_of_prompts_with_fewer_than_k_better_adapters(method: str, embedder: Any) -> None:
    samples, test = made_up(12, 1), made_up(7, 2)
    found = evaluate_routing(samples, test, [method], embedder)[method]
    names = list(samples)
    known = [looked_at(samples[name], embedder) for name in names]
    hits: dict[str, list[list[bool]]] = {}
    for task, prompts in test.items():
        for prompt in prompts:
            scores = SCORES[method](known, looked_at([prompt], embedder), found["settings"])
            better = sum(score > scores[names.index(task)] for score in scores)
            hits.setdefault(task, []).append([better < k for k in TOPS])
    flat = [row for rows in hits.values() for row in rows]
    assert found["n"] == len(flat) == 75
    for j, k in enumerate(TOPS):
        assert found[f"top{k}"] == pytest.approx(np.mean([row[j] for row in flat]), abs=1e-6)
    assert 0.2 < found["top1"] < found["top3"] < found["top5"] <= 1
    assert found["tasks"] == {t: pytest.approx(np.mean([row[0] for row in hits[t]]), abs=1e-6) for t in hits}


def test_an_interval_is_that_of_prompts_drawn_within_their_tasks(embedder: Any) -> None:
    samples, test = made_up(6, 1), made_up(5, 2)
    found = evaluate_routing(samples, test, ["cosine"], embedder)["cosine"]
    draws: list[list[float]] = [[] for _ in range(RESAMPLES)]
    for task, prompts in test.items():
        num_right = round(found["tasks"][task] * len(prompts))
        means = torch.stack([embedder(samples[name]).mean(0) for name in sorted(samples)])
        order = torch.nn.functional.cosine_similarity(embedder(prompts)[:, None], means[None], dim=2).argmax(1)
        right = [float(sorted(samples)[best] == task) for best in order.tolist()]
        assert sum(right) == num_right
        for i, times in enumerate(resamples(len(prompts), RESAMPLES, task_seed(0, task))):
            draws[i] += np.repeat(right, times).tolist()
    low, high = np.quantile([np.mean(draw) for draw in draws], [0.025, 0.975])
    assert found["intervals"]["top1"] == pytest.approx([low, high], abs=1e-6)
    for top, (lowest, highest) in found["intervals"].items():
        assert lowest <= found[top] <= highest


def test_prompts_that_are_samples_of_their_own_task_are_no_test(
    tmp_path: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **_: embedder)
    samples, test = made_up(6, 1), made_up(5, 2)
    one, other = list(test)[:2]
    mixed = test | {one: [samples[one][0], *test[one]], other: [samples[one][0], *test[other]]}
    assert not_sampled(samples, mixed) == mixed | {one: test[one]}
    paths = [tmp_path / name for name in ("samples", "test", "mixed")]
    for path, texts in zip(paths, (samples, test, test | {one: mixed[one]}), strict=True):
        rows = [{"task": task, "inputs": text} for task, own in texts.items() for text in own]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, found = (run_routing(paths[0], path, ["cosine"]) for path in paths[1:])
    assert found["methods"] == alone["methods"]
    assert [result["setup"]["left_out"] for result in (alone, found)] == [0, 1]
    with pytest.raises(InputError, match="is a sample of its own task"):
        not_sampled(samples, {one: samples[one]})


def test_prompts_that_are_asked_again_make_nothing_surer(embedder: Any) -> None:
    samples, test = made_up(6, 1), made_up(5, 2)
    again = {task: prompts * 3 for task, prompts in test.items()}
    one, three = (evaluate_routing(samples, asked, ["cosine"], embedder)["cosine"] for asked in (test, again))
    assert three.pop("n") == 3 * one.pop("n")
    assert one == three
    uneven = {task: [*prompts, prompts[0]] for task, prompts in test.items()}
    found = evaluate_routing(samples, uneven, ["cosine"], embedder)["cosine"]
    low, high = found["intervals"]["top1"]
    assert found["n"] == sum(map(len, uneven.values()))
    assert low < found["top1"] < high


def test_of_equal_adapters_the_first_by_name_is_taken(embedder: Any, tiny: Any) -> None:
    twins, prompts = tiny.texts("alpha", 8), tiny.texts("alpha", 5, 1)
    samples = {"b": twins, "a": twins, "other": tiny.texts("beta", 8)}
    found = evaluate_routing(samples, {"b": prompts, "a": prompts}, list(SCORERS), embedder)
    for method in SCORERS:
        assert found[method]["tasks"] == {"a": 1.0, "b": 0.0}
        assert (found[method]["top1"], found[method]["top3"]) == (0.5, 1.0)
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert [top_hits(scores, i)[0].tolist() for i in range(5)] == [
        [0, 0, 1, 1],
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]


def test_order_of_tasks_and_prompts_does_not_matter(embedder: Any) -> None:
    samples, test = made_up(12, 1), made_up(7, 2)
    turned = {task: test[task][::-1] for task in reversed(test)}
    methods = list(SCORERS)
    found = evaluate_routing(samples, test, methods, embedder)
    other = evaluate_routing(dict(reversed(samples.items())), turned, methods, embedder)
    for method in methods:
        assert {k: v for k, v in found[method].items() if k != "intervals"} == {
            k: v for k, v in other[method].items() if k != "intervals"
        }


def test_methods_are_measured_by_the_score_that_they_rank_by(embedder: Any) -> None:
    samples, test = made_up(12, 1), made_up(4, 2)
    found = evaluate_routing(samples, test, [*SCORERS, *METHOD_SCORERS], embedder)
    for method, scorer in METHOD_SCORERS.items():
        assert found[method] == found[scorer]


def test_every_text_is_embedded_once_and_progress_is_told(embedder: Any) -> None:
    given: list[str] = []

    class Counting(type(embedder)):  # type: ignore[misc]
        def __call__(self, texts: Any, batch_size: int = 32) -> Any:
            given.extend(texts)
            return super().__call__(texts, batch_size)

    samples, test = made_up(20, 1), made_up(20, 2)
    test["task 0"] += test["task 1"] + samples["task 2"]
    told: list[tuple[int, int]] = []
    evaluate_routing(samples, test, list(SCORERS), Counting(), on_progress=lambda *args: told.append(args))
    num = len({text for part in (samples, test) for texts in part.values() for text in texts})
    assert len(given) == len(set(given)) == num
    assert told == [(STEP, num), (num, num)]


def test_what_cannot_be_measured_is_refused(embedder: Any, tiny: Any) -> None:
    samples, test = {"a": tiny.texts("alpha", 6), "b": tiny.texts("beta", 1)}, {"a": tiny.texts("alpha", 2, 1)}
    with pytest.raises(UnknownNameError, match=r"Unknown method 'cosin'. Did you mean 'cosine'\?"):
        evaluate_routing(samples, test, ["cosin"], embedder)
    with pytest.raises(InputError, match="no method"):
        evaluate_routing(samples, test, [], embedder)
    with pytest.raises(InputError, match="'c' have no adapter to find: no samples for c, d"):
        evaluate_routing(samples, {**test, "d": ["x"], "c": ["x"]}, ["cosine"], embedder)
    for method in ("own", "tied", "experts", "hilora-plus"):
        with pytest.raises(InputError, match=r"'b' has 1 sample"):
            evaluate_routing(samples, test, [method], embedder)
    assert evaluate_routing(samples, test, ["cosine"], embedder)["cosine"]["top1"] == 1.0  # a mean of one is one


# files


def test_rows_are_read_by_task_and_other_fields_do_not_matter(tmp_path: Path) -> None:
    rows = [
        {"task": "b", "inputs": "one\u2028line", "targets": 3},
        {"task": "a", "inputs": " two "},
        {"task": "b", "inputs": "three"},
    ]
    text = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows").write_bytes(text.encode())
    assert read_samples(tmp_path / "rows") == {"b": ["one\u2028line", "three"], "a": [" two "]}


@pytest.mark.parametrize(
    "bad",
    [
        "{broken",
        "plain words",
        '"a string"',
        "17",
        "null",
        '["task", "inputs"]',
        '{"inputs": "x"}',
        '{"task": "a"}',
        '{"task": "a", "inputs": 3}',
        '{"task": null, "inputs": "x"}',
        '{"task": "a", "inputs": " "}',
    ],
)
def test_a_bad_row_is_refused_with_its_line(bad: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"task": "a", "inputs": "x"}\n\n' + bad + "\n")
    with pytest.raises(InputError, match=r"rows.jsonl, line 3: expected .*inputs.* got " + re.escape(bad)):
        read_samples(tmp_path / "rows.jsonl")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no rows"):
        read_samples(tmp_path / "empty")
    for name in ("bytes", "missing", "."):
        with pytest.raises(InputError, match="Cannot read"):
            read_samples(tmp_path / name)


def test_the_result_is_one_json_object_without_texts(tmp_path: Path, opened: Any, tiny: Any) -> None:
    samples = {task: tiny.texts(task, 8) for task in tiny.tasks}
    test = {task: tiny.texts(task, 4, 1) for task in tiny.tasks[:3]}
    files = write(tmp_path / "samples", samples), write(tmp_path / "test", test)
    out = tmp_path / "made" / "out.json"
    result = run_routing(*files, ["cosine", "hilora"], out, "fake", "embed")
    written = out.read_text()
    assert json.loads(written) == json.loads(json.dumps(result))
    assert result["methods"] == evaluate_routing(samples, test, ["cosine", "hilora"], opened)
    assert result.keys() == {"setup", "methods"}
    assert result["setup"]["embedder"] == {"name": "fake", "dim": 24, "instruction": "embed", "fingerprint": "0000"}
    for found in result["methods"].values():
        assert found.keys() == {"top1", "top3", "top5", "top8", "n", "intervals", "tasks", "settings"}
        assert found["intervals"].keys() == {"top1", "top3", "top5", "top8"}
        assert found["tasks"].keys() == test.keys()
        assert (found["n"], found["top5"]) == (12, 1.0)
    assert not any(text in written for part in (samples, test) for texts in part.values() for text in texts)
    assert str(tmp_path) not in written
    heading, *rows = routing_rows(result)
    assert heading == ("method", "top 1 (95 % interval)", "top 3", "top 5", "top 8", "rows")
    assert [row[0] for row in rows] == ["cosine", "hilora"]
    assert rows[0] == ("cosine", "100.0 (100.0 to 100.0)", "100.0", "100.0", "100.0", "12")


def test_no_embedder_is_loaded_for_what_is_refused(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilora.base.embed.Embedder", None)
    file = write(tmp_path / "rows", {"a": tiny.texts("alpha", 4)})
    with pytest.raises(UnknownNameError, match="cosines"):
        run_routing(file, file, ["cosines"], None)


@pytest.mark.parametrize(("instruction", "seen"), [("Find", ["Find: a", "Find: : b"]), ("", ["a", ": b"])])
def test_an_empty_instruction_leaves_texts_as_they_are(instruction: str, seen: list[str]) -> None:
    given: list[str] = []

    embedder = Embedder.__new__(Embedder)
    embedder.instruction, embedder.dim = instruction, 2
    embedder._encode = lambda texts: given.extend(texts) or torch.ones(len(texts), 2)
    embedder(["a", ": b"])
    assert given == seen
