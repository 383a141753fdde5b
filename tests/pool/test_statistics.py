"""Laws of kept statistics: routes are alike to the bit with and without, and none but the right ones are used."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hilora import Planner, Pool, get_method
from hilora.cli.app import app
from hilora.errors import PoolError
from hilora.pool import statistics, store
from hilora.route import stored
from hilora.route.experts import WEIGHTS, Experts
from hilora.route.features import hash_terms
from hilora.route.posterior import Posterior
from hilora.route.router import Query
from hilora.route.samples import Collection
from hilora.types import Route

FORMAT1 = Path(__file__).parent / "format1" / "pool"
PROMPTS = ["abab baab abba", "zzy xyz", "mmnn onm 132", "hi", "132 2231 aaa"]
Fitted = Callable[..., Route]


@pytest.fixture
def pool(shared_pool: Any, tmp_path: Path) -> Pool:
    """A copy of the tiny pool, to be changed."""
    return Pool.open(shutil.copytree(shared_pool("llama")[1].path, tmp_path / "pool"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of adapters of each fit."""
    fits: list[int] = []
    fit = Experts.fit

    def counting(self: Experts, samples: Any) -> Experts:
        fits.append(len(samples))
        return fit(self, samples)

    monkeypatch.setattr(Experts, "fit", counting)
    return fits


@pytest.fixture
def route(embedder: Any) -> Fitted:
    """PROMPTS routed over a pool, as it lies there now."""

    def routed(pool: Pool, **options: Any) -> Route:
        found = Planner(Pool.open(pool.path), get_method("hilora-plus", **options), embedder).route(PROMPTS).route
        assert found is not None
        return found

    return routed


def same(one: Route, other: Route) -> bool:
    assert one.leads is not None
    assert other.leads is not None
    pairs = ((one.ids, other.ids), (one.scores, other.scores), (one.weights, other.weights), (one.leads, other.leads))
    return all(torch.equal(left, right) for left, right in pairs)


def kept(pool: Pool) -> list[Path]:
    return sorted((pool.path / store.STATISTICS).glob("*"))


@pytest.mark.parametrize("options", [{}, {"fallback": "none", "candidates": "conformal"}, {"terms": False}], ids=str)
def test_routes_are_alike_to_the_bit_with_kept_statistics_and_without(
    pool: Pool, route: Fitted, counted: list[int], options: dict[str, Any]
) -> None:
    before = route(pool, **options)
    manifest, fits = (pool.path / store.MANIFEST).read_bytes(), len(counted)
    path = pool.fit(always=True)
    assert path is not None
    assert kept(pool) == [path]
    assert (pool.path / store.MANIFEST).read_bytes() == manifest
    counted.clear()
    assert same(route(pool, **options), before)
    assert len(counted) == (fits - 1 if "terms" in options else 0)  # without terms a calibration is worked out


@pytest.mark.parametrize("adapters", [20, 90])  # spelling's Gaussian is the dual one, then the plain one
def test_all_that_is_learned_comes_back(adapters: int) -> None:
    generator = torch.Generator().manual_seed(adapters)
    samples = [
        stored.Features(
            torch.randn(16, 8, generator=generator) + i,
            None if i % 5 == 4 else hash_terms([f"text {n} of {i} {'abcdefgh'[i % 8] * (n + 1)}" for n in range(16)]),
        )
        for i in range(adapters)
    ]
    learned = stored.learn(samples)
    assert any("|dual|" in name for name in learned) == (adapters == 20)

    class Kept(Collection):
        def learned(self, recipe: str) -> Any:
            assert recipe == stored.RECIPE
            return learned

    query = stored.Features(torch.randn(6, 8, generator=generator), hash_terms([*PROMPTS, "text 3 of 7"]))
    for terms in (True, False):
        want = Experts(WEIGHTS, terms).fit(samples)
        found = stored.experts(Kept(samples), WEIGHTS, terms)
        assert found.witnesses_.keys() == want.witnesses_.keys()
        assert torch.equal(found.score(query), want.score(query))
        assert torch.equal(found.worded_, want.worded_)


def test_what_was_learned_from_other_samples_is_never_used(
    pool: Pool, route: Fitted, counted: list[int], tiny: Any, shared_pool: Any, embedder: Any, tmp_path: Path
) -> None:
    old = pool.fit(always=True)
    assert old is not None
    folder = tiny.adapter(tmp_path / "more", tiny.sites(shared_pool("llama")[0], "llama"), seed=5)
    pool.add("more", folder, tiny.texts("alpha", 9, 3), embedder)
    counted.clear()
    fresh = route(pool)
    assert counted == [5]
    stale = statistics.path_of(pool.path, statistics.key_of(pool.entries, stored.RECIPE))
    shutil.copy(old, stale)  # under the right name, and still it says whose it is
    assert same(route(pool), fresh)
    assert counted == [5, 5]
    assert pool.fit(always=True) == stale
    assert kept(pool) == [stale]  # and what no pool is any more is gone
    counted.clear()
    assert same(route(pool), fresh)
    assert counted == []
    pool.enable("more", False)  # who may be routed to does not matter to what is learned
    route(pool)
    assert counted == []
    pool.remove("more")
    route(pool)
    assert counted == [4]
    pool.prune()
    assert kept(pool) == []


def test_another_recipe_finds_nothing(
    pool: Pool, route: Fitted, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.fit(always=True)
    monkeypatch.setattr(stored, "RECIPE", "experts 0")
    counted.clear()
    route(pool)
    assert counted == [4]


def tampered(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change tensors, and leave what the file says of itself."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=about)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "no tensors": lambda path: path.write_bytes(b"hello" * 100),
    "one bit": lambda path: path.write_bytes(
        path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 1, *b"--------"])
    ),
    "says nothing": lambda path: save_file(load_file(path), path),
    "one number": lambda path: tampered(path, lambda tensors: tensors["meaning|noise_"].add_(1)),
    "one less": lambda path: tampered(path, lambda tensors: tensors.pop("phrases|gain_")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_statistics_are_told_of_passed_over_and_written_again(
    damage: str, pool: Pool, route: Fitted, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = pool.fit(always=True)
    assert path is not None
    before = route(pool)
    DAMAGES[damage](path)
    counted.clear()
    caplog.clear()
    assert same(route(pool), before)
    assert counted == [4]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{path} is damaged" in record.getMessage()
    assert f"hilora pool fit --pool {pool.path}" in record.getMessage()
    assert "\n" not in record.getMessage()
    if damage == "a folder":
        path.rmdir()
    assert pool.fit(always=True) == path
    counted.clear()
    assert same(route(pool), before)
    assert counted == []


def test_whole_tensors_of_another_number_of_adapters_are_not_used(
    pool: Pool, route: Fitted, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    before = route(pool)
    key = statistics.key_of(pool.entries, stored.RECIPE)
    for learned in (stored.learn(pool.samples()[:3]), {"worded": torch.ones(4).bool()}):
        statistics.write(pool.path, key, learned)
        counted.clear()
        caplog.clear()
        assert same(route(pool), before)
        assert counted == [4]
        assert "were not used" in caplog.text


def test_a_large_pools_changes_keep_statistics_and_a_small_ones_do_not(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, quick_tuning: None
) -> None:
    pool.tune()
    assert kept(pool) == []
    monkeypatch.setattr(statistics, "LARGE", 3)
    pool.tune()
    (first,) = kept(pool)
    written = first.stat().st_mtime_ns
    pool.tune()  # nothing has changed
    assert first.stat().st_mtime_ns == written
    pool.remove("delta")
    pool.tune()
    (second,) = kept(pool)
    assert second != first


def test_a_folder_that_may_only_be_read_is_fitted_in_memory_and_a_large_pool_says_so(
    pool: Pool, route: Fitted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, found = route(pool), sorted(pool.path.rglob("*"))
    assert not caplog.records  # small: nobody waits for it
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(statistics, "LARGE", 3)
    assert same(route(pool), before)
    (record,) = caplog.records
    assert "keeps no statistics of its 4 adapters" in record.getMessage()
    assert "by somebody who may write there: hilora pool fit --pool" in record.getMessage()
    assert sorted(pool.path.rglob("*")) == found

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "write_whole", refuse)
    caplog.clear()
    assert pool.fit() is None  # after a change: the change is made, and only the next start takes longer
    assert "You may not write there" in caplog.text
    with pytest.raises(PoolError, match="You may not write there"):
        pool.fit(always=True)


def test_a_pool_that_others_change_meanwhile_does_not_keep_what_it_was(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    other, learn = Pool.open(pool.path), stored.learn

    def slowly(samples: Any) -> Any:
        other.remove("delta")
        return learn(samples)

    monkeypatch.setattr("hilora.pool.folder.learn", slowly)
    pool.fit(always=True)
    assert kept(pool) == []


def test_a_pool_of_an_earlier_version_routes_and_can_keep_statistics(
    tmp_path: Path, route: Fitted, counted: list[int]
) -> None:
    pool = Pool.open(shutil.copytree(FORMAT1, tmp_path / "old"))
    manifest = (pool.path / store.MANIFEST).read_bytes()
    before = route(pool)
    pool.fit(always=True)
    counted.clear()
    assert same(route(pool), before)
    assert counted == []
    assert (pool.path / store.MANIFEST).read_bytes() == manifest  # still of format 1
    assert json.loads(manifest)["format"] == 1


def test_an_empty_pool_has_nothing_to_keep(pool: Pool) -> None:
    for name in pool.names:
        pool.remove(name)
    assert pool.fit(always=True) is None
    assert kept(pool) == []


def test_a_change_of_what_fitting_gives_is_a_new_version() -> None:
    """Numbers that version 1 gives; who changes them raises `stored.VERSION`, or pools go on with what was kept."""
    samples = [
        stored.Features(torch.eye(6)[i : i + 1] + torch.arange(30.0).view(5, 6) % 7 / 10, hash_terms(texts))
        for i, texts in enumerate((["one two", "two", "three one", "a b", "b"], ["x", "yy x", "z", "x z", "yy"]))
    ]
    learned = stored.learn(samples)
    found = {name: float(tensor.double().abs().sum()) for name, tensor in learned.items()}
    assert stored.VERSION == 1
    assert found == pytest.approx(EXPECTED, rel=1e-4)


EXPECTED = {
    "worded": 2.0, "meaning|noise_": 0.844481, "meaning|tied|whitening_": 50.7508, "meaning|tied|mean_": 40.4183,
    "meaning|tied|log_det_": 19.7142, "meaning|tied|spread_": 4.2224, "spelling|rarity_": 6910.53,
    "spelling|noise_": 3.18435, "spelling|dual|mean_": 4.86505, "spelling|dual|whitening_": 32.7526,
    "spelling|dual|white_mean_": 0.46426, "spelling|dual|level_": 0.000206533, "spelling|dual|log_det_": 17333.9,
    "spelling|dual|spread_": 15.9218, "phrases|start_": 91.0, "phrases|gain_": 28.5983, "phrases|absent_": 3.58352,
    "phrases|vocabulary_": 1.61612e10, "phrases|adapter_": 5.0, "outline|start_": 13648, "outline|gain_": 371.018,
    "outline|absent_": 3.58352, "outline|vocabulary_": 1.51872e11, "outline|adapter_": 89,
}  # fmt: skip
"""Sums of absolute values."""


def test_the_router_says_the_same_of_a_pool_and_of_its_samples(pool: Pool, embedder: Any) -> None:
    pool.fit(always=True)
    query = Query(PROMPTS, embedder(PROMPTS))
    every = torch.ones(len(PROMPTS), len(pool), dtype=torch.bool)
    plain = Collection(pool.samples(), pool.ridge, pool.calibration)
    assert same(Posterior().fit(Pool.open(pool.path))(query, every), Posterior().fit(plain)(query, every))


def test_the_command_keeps_statistics_of_any_pool_and_says_where(pool: Pool) -> None:
    told = CliRunner().invoke(app, ["pool", "fit", "--pool", str(pool.path)], catch_exceptions=False)
    (path,) = kept(pool)
    assert told.stdout == f"{path}\n"
    for name in pool.names:
        pool.remove(name)
    told = CliRunner().invoke(app, ["pool", "fit", "--pool", str(pool.path)], catch_exceptions=False)
    assert "the pool is empty" in told.stdout
