"""Calibrated posterior weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hilora.errors import InputError
from hilora.route.posterior import GRID, TEMPERATURE, Posterior, fit_temperature
from hilora.route.router import Query

DIM, ADAPTERS = 16, 6


def tasks(samples: int, spread: float = 1.0, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Samples of Gaussian tasks around random centres, and the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(ADAPTERS, DIM, generator=generator)
    noise = torch.randn(ADAPTERS, samples, DIM, generator=generator) * spread
    return list(centres[:, None] + noise), centres


def everything(batch: int) -> Tensor:
    return torch.ones(batch, ADAPTERS, dtype=torch.bool)


def test_weights_are_the_tempered_softmax_over_the_k_likeliest() -> None:
    embeddings, _ = tasks(20)
    router = Posterior(k=3, floor=0.0, temperature=4.0).fit(embeddings)
    query = torch.randn(9, DIM, generator=torch.Generator().manual_seed(1))
    route = router(Query(["x"] * 9, query), everything(9))
    scores = router.model_.score(query)
    for row in range(9):
        logits = [float(s) * DIM / 4.0 for s in scores[row]]
        best = sorted(range(ADAPTERS), key=lambda i: -logits[i])[:3]
        total = sum(math.exp(logits[i]) for i in best)
        assert route.ids[row].tolist() == best
        want = [math.exp(logits[i]) / total for i in best]
        assert route.weights[row].tolist() == pytest.approx(want, rel=1e-4)
        assert route.scores[row].tolist() == pytest.approx([float(scores[row, i]) for i in best])


def test_the_fitted_temperature_predicts_how_often_the_best_is_right() -> None:
    embeddings, centres = tasks(20, spread=1.6)
    router = Posterior(k=ADAPTERS, floor=0.0).fit(embeddings)
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, ADAPTERS, (2000,), generator=generator)
    query = centres[label] + 1.6 * torch.randn(2000, DIM, generator=generator)
    route = router(Query(["x"] * 2000, query), everything(2000))
    right = (route.ids[:, 0] == label).double().mean()
    assert abs(float(route.weights[:, 0].double().mean()) - float(right)) < 0.05


def test_adapters_far_behind_the_best_are_left_out() -> None:
    embeddings, centres = tasks(20, spread=0.3)
    router = Posterior(k=4, floor=0.2).fit(embeddings)
    query = torch.cat([centres, (centres[:1] + centres[1:2]) / 2])
    route = router(Query(["x"] * len(query), query), everything(len(query)))
    counts = (route.weights > 0).sum(1).tolist()
    assert counts[:ADAPTERS] == [1] * ADAPTERS
    assert all(float(w) >= 0.2 * float(row.max()) - 1e-6 for row in route.weights for w in row if w > 0)


def test_masked_adapters_get_nothing_and_rows_do_not_touch_each_other() -> None:
    embeddings, _ = tasks(20)
    router = Posterior().fit(embeddings)
    query = torch.randn(8, DIM, generator=torch.Generator().manual_seed(3))
    allowed = torch.rand(8, ADAPTERS, generator=torch.Generator().manual_seed(4)) < 0.5
    allowed[0] = False
    route = router(Query(["x"] * 8, query), allowed)
    for row in range(8):
        used = route.ids[row][route.weights[row] > 0]
        assert bool(allowed[row][used].all())
        alone = router(Query(["x"], query[row : row + 1]), allowed[row : row + 1])
        assert used.tolist() == alone.ids[0][alone.weights[0] > 0].tolist()
        assert route.weights[row].sum() == pytest.approx(float(bool(allowed[row].any())))


def test_the_temperature_maximises_the_held_out_likelihood() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(400, ADAPTERS, generator=generator, dtype=torch.float64) * 30
    true = 12.0
    label = torch.multinomial(torch.softmax(scores / true, 1), 1, generator=generator)[:, 0]
    found = fit_temperature(scores[torch.arange(400), label], scores)
    assert 0.7 * true < found < 1.4 * true


def test_too_few_samples_to_hold_out_take_the_default() -> None:
    router = Posterior().fit([samples[:2] for samples in tasks(20)[0]])
    assert router.temperature_ == TEMPERATURE
    assert GRID[0] < TEMPERATURE < GRID[-1]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"floor": 2.0}, {"temperature": 0.0}, {"shrinkage": 0.0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Posterior(**wrong)  # type: ignore[arg-type]
