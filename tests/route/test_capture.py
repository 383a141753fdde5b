"""Laws of capture: who takes nothing is free to come, whoever the others are and in whatever order they came."""

from __future__ import annotations

from typing import Any

import torch

from hilora.route.capture import capture
from hilora.route.epoch import Epoch, learn_epoch
from hilora.route.features import Features, hash_terms, join

RIDGE = 1e-3


def features(embedder: Any, texts: list[str]) -> Features:
    return Features(embedder(texts), hash_terms(texts))


def four(tiny: Any, embedder: Any) -> list[Features]:
    return [features(embedder, tiny.texts(task, 20)) for task in tiny.tasks]


def alike(tiny: Any, embedder: Any) -> list[Features]:
    """Three versions of one task."""
    return [features(embedder, tiny.texts("alpha", 20, seed)) for seed in range(3)]


def test_a_task_of_its_own_takes_nothing_and_stolen_samples_take_much(tiny: Any, embedder: Any) -> None:
    *others, own = four(tiny, embedder)
    assert capture(own, others, ridge=RIDGE).share == 0
    others = alike(tiny, embedder)
    stolen = capture(join(others), others, ridge=RIDGE)
    assert stolen.share > 0.5
    assert stolen.held == 40


def test_the_order_of_the_others_changes_nothing(tiny: Any, embedder: Any) -> None:
    others = four(tiny, embedder)
    new = join(others).take(torch.arange(0, 80, 2))
    found, turned = capture(new, others, ridge=RIDGE), capture(new, others[::-1], ridge=RIDGE)
    assert (found.share, found.by, found.held) == (turned.share, turned.by, turned.held)


def test_another_version_of_one_task_is_between_the_two(tiny: Any, embedder: Any) -> None:
    others = four(tiny, embedder)
    found = capture(others[2], others, ridge=RIDGE)
    assert (found.share, found.neighbour) == (0.0, 2)


def test_where_nothing_can_be_held_out_nothing_is_taken(tiny: Any, embedder: Any) -> None:
    others = four(tiny, embedder)
    few = [own.take(torch.arange(4)) for own in others]
    assert capture(others[0], [], ridge=RIDGE).share == 0
    assert capture(others[0], few, ridge=RIDGE).share == 0


def test_under_an_epoch_it_is_asked_as_prompts_will_be_scored(tiny: Any, embedder: Any, quick_tuning: None) -> None:
    *others, own = four(tiny, embedder)
    epoch = Epoch.of("0" * 64, learn_epoch(others))
    assert capture(own, others, ridge=RIDGE, epoch=epoch).share == 0
    others = alike(tiny, embedder)
    epoch = Epoch.of("0" * 64, learn_epoch(others))
    assert capture(join(others), others, ridge=RIDGE, epoch=epoch).share > 0.3
