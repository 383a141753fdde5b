"""Diagnoses of pools whose trouble is known."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from hilora.analyse.bounds import bhattacharyya, normals, top_k_bound
from hilora.analyse.confusion import FEW_SAMPLES, NUM_RIVALS, Diagnosis, diagnose, held_out, ranked
from hilora.errors import InputError
from hilora.evaluate.routing import TOPS
from hilora.route.crossfit import fold_scores
from hilora.route.gaussian import MIN_SAMPLES, OwnGaussian
from hilora.route.ridge import choose_ridge
from hilora.route.tied import TiedGaussian


def own() -> OwnGaussian:
    return OwnGaussian(1e-2)


def tied() -> TiedGaussian:
    return TiedGaussian(0.2)


form = pytest.mark.parametrize("fresh", [own, tied])


def clusters(counts: tuple[int, ...], dim: int = 24, noise: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """Unit vectors around a centre per adapter, "a", "b", ..."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(len(counts), dim, generator=generator), dim=1)
    return {
        chr(ord("a") + i): torch.nn.functional.normalize(
            centre + torch.randn(count, dim, generator=generator) * noise / math.sqrt(dim), dim=1
        )
        for i, (centre, count) in enumerate(zip(centres, counts, strict=True))
    }


def by_name(found: list[Diagnosis]) -> dict[str, Diagnosis]:
    return {each.name: each for each in found}


@form
def test_adapters_that_are_far_apart_need_no_advice(fresh: type) -> None:
    for each in diagnose(clusters((20,) * 5), fresh):
        assert each.advice == each.duplicates == []
        assert each.num_held == each.num_samples == 20
        assert each.measured == dict.fromkeys(TOPS, 0.0)
        assert each.captured == each.fair == 0
        assert all(0 <= bound < 0.5 for bound in each.bound.values())
        assert [rival.lost for rival in each.rivals] == [0.0] * NUM_RIVALS


@form
def test_bound_and_measured_rate_are_those_of_the_theorem_and_of_cross_fitting(fresh: type) -> None:
    samples = clusters((20,) * 6, noise=3.0)
    found = diagnose(samples, fresh)
    distance = bhattacharyya(normals(fresh().fit(list(samples.values()))))
    owners, rows = zip(*fold_scores(list(samples.values()), fresh), strict=True)
    owner, scores = torch.cat(owners), torch.cat(rows)
    assert float((scores > scores.gather(1, owner[:, None])).any(1).float().mean()) == pytest.approx(
        sum(each.measured[1] or 0 for each in found) / 6
    )
    for i, each in enumerate(found):
        assert each.bound == {k: float(top_k_bound(distance, k)[i]) for k in TOPS}
        rates = [rate for rate in each.measured.values() if rate is not None]
        assert rates == sorted(rates, reverse=True)
        order = sorted((float(distance[i, j]), name) for j, name in enumerate(samples) if j != i)
        assert [(rival.distance, rival.name) for rival in each.rivals] == order[:NUM_RIVALS]


@form
def test_the_same_samples_twice_are_near_duplicates_by_distance(fresh: type) -> None:
    samples = clusters((20,) * 4)
    found = by_name(diagnose(samples | {"copy": samples["a"].clone()}, fresh))
    assert found["a"].duplicates == ["copy"]
    assert found["copy"].duplicates == ["a"]
    assert found["a"].rivals[0].distance == pytest.approx(0, abs=1e-9)
    assert found["a"].bound[1] == pytest.approx(1, abs=1e-6)
    assert found["a"].measured[1] == 1  # equal scores: the rival counts as ahead
    assert "'copy'" in found["a"].advice[0]
    assert all(found[name].advice == [] for name in "bcd")


@form
def test_two_adapters_of_one_task_are_near_duplicates_by_exchange(fresh: type) -> None:
    samples = clusters((40, 20, 20, 20), noise=1.0)
    pair = {"a": samples["a"][:20], "twin": samples["a"][20:]}
    found = by_name(diagnose({**samples, **pair}, fresh))
    assert found["a"].duplicates == ["twin"]
    assert found["twin"].duplicates == ["a"]
    assert found["a"].rivals[0].name == "twin"
    assert 0.3 < (found["a"].rivals[0].lost or 0) < 0.9
    assert (found["a"].measured[3] or 0) < 0.1
    assert all(found[name].duplicates == [] for name in "bcd")


def test_an_adapter_that_captures_others_prompts_is_named() -> None:
    """Few samples in wide clusters: its isotropic Gaussian is near to everybody's held-out samples."""
    samples = clusters((20,) * 6 + (4,), dim=64, noise=2.0)
    ridge = choose_ridge(list(samples.values()))
    found = by_name(diagnose(samples, lambda: OwnGaussian(ridge)))
    assert [name for name, each in found.items() if each.captures_others] == ["g"]
    assert found["g"].captured > 3 * found["g"].fair > 0
    assert any("times its fair share" in line for line in found["g"].advice)


@pytest.mark.parametrize("count", [2, MIN_SAMPLES - 1, MIN_SAMPLES, FEW_SAMPLES - 1, FEW_SAMPLES])
@form
def test_too_few_samples_are_said_to_be(fresh: type, count: int) -> None:
    found = by_name(diagnose(clusters((20, 20, count)), fresh))["c"]
    assert found.too_few_samples == (count < FEW_SAMPLES)
    assert any(f"Only {count} samples" in line for line in found.advice) == (count < FEW_SAMPLES)
    assert any("directions" in line for line in found.advice) == (count < MIN_SAMPLES)
    if count < MIN_SAMPLES + 1:
        assert found.num_held == 0
        assert found.measured == dict.fromkeys(TOPS)
        assert found.rivals[0].lost is None
        assert any("Nothing could be held out" in line for line in found.advice)
    assert all(0 <= bound <= 1 for bound in found.bound.values())


@form
def test_a_pool_of_which_nothing_can_be_held_out_is_still_diagnosed(fresh: type) -> None:
    found = diagnose(clusters((4, 3, 2)), fresh)
    assert [each.num_held for each in found] == [0, 0, 0]
    assert all(each.measured[1] is None and each.captured == 0 for each in found)


def test_an_adapter_that_is_often_missed_is_told_what_candidates_would_do() -> None:
    samples = clusters((20,) * 8, noise=8.0)
    poor = max(diagnose(samples, tied), key=lambda each: each.measured[1] or 0)
    assert (poor.measured[1] or 0) > 0.5
    assert any(f"Missed on {poor.measured[1]:.0%}" in line and "among the 8 best" in line for line in poor.advice)


@form
def test_the_order_of_the_adapters_plays_no_part(fresh: type) -> None:
    samples = clusters((20, 12, 20, 20, 4), noise=2.0)
    before = by_name(diagnose(samples, fresh))
    after = by_name(diagnose(dict(reversed(samples.items())), fresh))
    for name, each in before.items():
        assert after[name].measured == each.measured
        assert after[name].captured == pytest.approx(each.captured)
        assert after[name].bound == pytest.approx(each.bound, rel=1e-4)
        assert [rival.name for rival in after[name].rivals] == [rival.name for rival in each.rivals]


def test_samples_are_left_as_they_were_and_a_diagnosis_is_plain_data() -> None:
    samples = clusters((20, 20))
    kept = {name: each.clone() for name, each in samples.items()}
    found = diagnose(samples, own)
    assert all(torch.equal(samples[name], kept[name]) for name in kept)
    assert asdict(found[0])["rivals"][0]["name"] == "b"


def test_a_miss_is_k_rivals_or_more_at_least_as_high() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [3.0, 2.0, 5.0], [0.0, 0.0, 1.0]])
    found = ranked(torch.tensor([0, 1, 2]), scores)
    assert [found.missed(k).tolist() for k in (1, 2, 3)] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_no_sample_is_scored_by_gaussians_that_saw_it() -> None:
    """An adapter of one far-off sample and many alike: the far-off one finds its own adapter only if it was seen."""
    samples = clusters((20, 20))
    samples["a"][0] = samples["b"].mean(0)
    found = held_out(list(samples.values()), own)
    assert float(found.missed(1)[0]) == pytest.approx(1 / 20)


@pytest.mark.parametrize("counts", [(), (20,)])
def test_fewer_than_two_adapters_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"two or more: got {len(counts)}"):
        diagnose(clusters(counts) if counts else {}, own)


def test_a_single_sample_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'b' has 1 sample"):
        diagnose(clusters((20, 1)), own)
