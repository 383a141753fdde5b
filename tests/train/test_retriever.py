"""The trained retriever: its loss is the paper's, pairs are of one task and negatives of others, runs go on."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora.base.embed import Embedder
from hilora.errors import InputError
from hilora.train.retriever import RetrieverRecipe, contrastive_loss, pairs, train_retriever
from hilora.train.tasks import tasks_of

TASKS = {f"t{i}": [f"{letter * 3} {letter}{n}" for n in "abcdefgh"] for i, letter in enumerate("klmno")}


@pytest.fixture
def recipe(tmp_path: Path, tiny: Any) -> RetrieverRecipe:
    (tmp_path / "start").mkdir()
    start = tiny.bert(tmp_path / "start")
    return RetrieverRecipe(steps=27, batch=4, lr=3e-3, embedder=str(start), temperature=0.2, instruction="say")


def test_the_loss_is_the_papers_softmax_in_its_logarithm() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, positives = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for i in range(5):
        cosines = [torch.cosine_similarity(anchors[i], positives[j], dim=0) for j in range(5)]
        others = sum(torch.exp(c / 0.3) for j, c in enumerate(cosines) if j != i)
        ratio = torch.exp(cosines[i] / 0.3) / (torch.exp(cosines[i] / 0.3) + others)
        total -= float(torch.log(ratio))
    assert float(contrastive_loss(anchors, positives, 0.3)) == pytest.approx(total / 5)


def test_a_batch_has_two_samples_of_each_of_different_tasks() -> None:
    owner = {text: name for name, texts in TASKS.items() for text in texts}
    seen = set()
    for batch in islice(pairs(TASKS, RetrieverRecipe(batch=3)), 50):
        tasks = [owner[a] for a, _ in batch]
        assert len(set(tasks)) == 3
        assert all(a != b and owner[a] == owner[b] for a, b in batch)
        seen |= set(tasks)
    assert seen == set(TASKS)
    assert len(next(pairs(TASKS, RetrieverRecipe(batch=32)))) == 5


def test_a_share_of_the_tasks_is_trained_on() -> None:
    assert tasks_of(TASKS, RetrieverRecipe()) == sorted(TASKS)
    some = tasks_of(TASKS, RetrieverRecipe(share=0.4))
    assert len(some) == 2
    assert set(some) < set(TASKS)


def test_training_brings_tasks_together_and_goes_on_after_an_interruption(
    recipe: RetrieverRecipe, tmp_path: Path
) -> None:
    losses: list[float] = []
    out = train_retriever(TASKS, tmp_path / "a", recipe, on_step=lambda step, loss, speed: losses.append(loss))
    assert sum(losses[-5:]) < sum(losses[:5])
    before, after = Embedder(recipe.embedder, instruction="say"), Embedder(str(out), instruction="say")
    assert before.fingerprint != after.fingerprint

    def inner(embedder: Embedder) -> float:
        """Mean cosine in a task minus that over all."""
        vectors = torch.stack([embedder(texts) for texts in TASKS.values()])  # (task, text, dim)
        every = vectors.flatten(0, 1)
        return float((vectors @ vectors.mT).mean() - (every @ every.T).mean())

    assert inner(after) > inner(before)
    assert json.loads((out / "recipe.json").read_text())["tasks"] == sorted(TASKS)

    def stop(step: int, loss: float, speed: float) -> None:
        if step == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_retriever(TASKS, tmp_path / "b", recipe, on_step=stop)
    assert not (tmp_path / "b").exists()
    again = train_retriever(TASKS, tmp_path / "b", recipe)
    texts = [text for own in TASKS.values() for text in own]
    torch.testing.assert_close(Embedder(str(again), instruction="say")(texts), after(texts), rtol=0, atol=0)


def test_what_cannot_be_trained_is_refused(recipe: RetrieverRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is only one task"):
        train_retriever({"a": ["x", "y"]}, tmp_path / "out", recipe)
    with pytest.raises(InputError, match="'b' has fewer than two"):
        train_retriever({"a": ["x", "y"], "b": ["x", "x"]}, tmp_path / "out", recipe)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists"):
        train_retriever(TASKS, tmp_path / "out", recipe)
    for bad in ({"share": 0.0}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            replace(recipe, **bad)
