"""A pool with an epoch: planners grow with it, and adapters that others alone may use change nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilora import Planner, Pool, get_method
from hilora.cli.app import app
from hilora.errors import InputError, MismatchError, PoolError, UnknownNameError
from hilora.pool import epochs, statistics, store
from hilora.pool.epochs import EpochInfo
from hilora.pool.folder import PoolFolder
from hilora.route import stored
from hilora.types import Choice

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom", "hi", "1132 3211 123"]
METHODS: dict[str, dict[str, Any]] = {
    "hilora": {},
    "hilora-gs": {},
    "hilora-plus": {},
    "selection": {},
    "mixture": {},
    "fusion": {},
    "arrow": {},
    "ramole": {},
}
OPTIONS = [
    *METHODS.items(),
    ("hilora", {"covariance": "tied", "candidates": "top"}),
    ("hilora", {"ridge": 0.01}),
    ("hilora-plus", {"candidates": "conformal", "fallback": "abstain"}),
    ("hilora-plus", {"terms": False}),
]
Told = list[tuple[Choice, ...]]
Add = Callable[..., None]


@pytest.fixture(scope="module")
def made(shared_pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pool with an epoch of three of its adapters."""
    path = tmp_path_factory.mktemp("made") / "pool"
    Pool.open(shutil.copytree(shared_pool("llama")[1].path, path)).renew_epoch(only=["alpha", "beta", "gamma"])
    return path


@pytest.fixture
def pool(made: Path, tmp_path: Path) -> Pool:
    """A copy of it, to be changed."""
    return Pool.open(shutil.copytree(made, tmp_path / "pool"))


@pytest.fixture
def add(pool: Pool, tiny: Any, shared_pool: Any, embedder: Any, tmp_path: Path) -> Add:
    """Add an adapter that knows a task of the tiny pool, by other samples."""
    sites = tiny.sites(shared_pool("llama")[0], "llama")

    def call(name: str, task: str, seed: int, count: int = 9, **options: Any) -> None:
        folder = tiny.adapter(tmp_path / name, sites, seed=seed)
        pool.add(name, folder, tiny.texts(task, count, seed), embedder, **options)

    return call


def told(planner: Planner, **lists: Any) -> Told:
    return planner.explain(planner.route(PROMPTS, **lists), seed=5)


def assert_alike(found: Told, want: Told) -> None:
    for row, other in zip(found, want, strict=True):
        assert [choice.name for choice in row] == [choice.name for choice in other]
        for one, two in zip(row, other, strict=True):
            assert [one.score, one.weight] == pytest.approx([two.score, two.weight], rel=1e-5, abs=1e-5)
            assert replace(one, score=0.0, weight=0.0) == replace(two, score=0.0, weight=0.0)


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_a_planner_over_a_changed_pool_is_one_that_is_made_for_it(
    pool: Pool, add: Add, embedder: Any, method: str, options: dict[str, Any]
) -> None:
    first = planner = Planner(Pool.open(pool.path), get_method(method, **options), embedder)
    before = told(first)
    changes: list[Callable[[], Any]] = [
        lambda: add("late", "beta", 8),
        lambda: add("few", "delta", 3, count=3),
        lambda: add("plain", "gamma", 4, terms=False),
        lambda: add("late", "alpha", 6, replace=True),
        lambda: pool.enable("few", False),
        lambda: pool.remove("alpha"),
        lambda: add("alpha", "beta", 21),
        lambda: pool.remove("plain"),
    ]
    if method == "ramole":
        changes = changes[:2]  # its router was trained for adapters that are still there
    for change in changes:
        change()
        view = Pool.open(pool.path)
        planner = planner.over(view)
        assert_alike(told(planner), told(Planner(view, get_method(method, **options), embedder)))
    assert_alike(told(first), before)


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_two_servers_with_and_without_anothers_adapters_answer_alike(
    pool: Pool, add: Add, embedder: Any, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    mine, copied = pool.names, shutil.copytree(pool.path, tmp_path / "less")
    without = Planner(Pool.open(copied), get_method(method, **options), embedder)
    add("theirs", "alpha", 8)
    add("few", "beta", 3, count=3)
    add("plain", "gamma", 4, terms=False)
    more = Planner(Pool.open(pool.path), get_method(method, **options), embedder)
    for allow in (mine, ["alpha", "delta"], ["beta"], []):
        assert_alike(told(more, allow=allow), told(without, allow=allow))
        assert more.route(PROMPTS, allow=allow).notes == without.route(PROMPTS, allow=allow).notes


@pytest.mark.parametrize("method", METHODS)
def test_growing_reads_newcomers_only_and_shares_the_rest(
    pool: Pool, add: Add, tiny: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    loaded: list[int] = []
    read: list[str] = []

    def load(*_: Any, **__: Any) -> Any:
        loaded.append(1)
        return tiny.embedder()

    monkeypatch.setattr("hilora.base.embed.EmbedderInfo.load", load)
    planner = Planner(Pool.open(pool.path), get_method(method))
    samples = PoolFolder._samples

    def reading(self: PoolFolder, entry: Any) -> Any:
        read.append(entry.name)
        return samples(self, entry)

    monkeypatch.setattr(PoolFolder, "_samples", reading)
    monkeypatch.setattr(epochs, "read", None)  # nor is the epoch read again
    add("late", "beta", 8)
    grown = planner.over(Pool.open(pool.path))
    assert read == ([] if method == "arrow" else ["late"])
    told(grown)
    told(planner)
    assert loaded == ([] if method == "arrow" else [1])
    assert getattr(grown.source, "memory", None) is getattr(planner.source, "memory", None)


def test_a_view_of_another_embedder_is_refused(pool: Pool, embedder: Any, tiny: Any) -> None:
    planner = Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)

    class Other(tiny.embedder):  # type: ignore[misc]
        fingerprint = "1111"

    found = Other()
    texts = {name: tiny.texts(name, 9) for name in pool.names}
    pool.reembed(texts, tiny_info(found), found)
    with pytest.raises(MismatchError, match="was embedded with"):
        planner.over(pool)


def tiny_info(embedder: Any) -> Any:
    from hilora.base.embed import describe_embedder

    return describe_embedder(embedder)


def test_embedding_anew_drops_the_epoch_and_says_so(
    pool: Pool, tiny: Any, caplog: pytest.LogCaptureFixture, quick_tuning: None
) -> None:
    embedder = tiny.embedder()
    pool.reembed({name: tiny.texts(name, 9) for name in pool.names}, tiny_info(embedder), embedder)
    assert pool.epoch_info is None
    assert pool.epoch is None
    assert "has no epoch any more" in caplog.text


def test_the_manifest_names_it_and_prune_keeps_it(pool: Pool) -> None:
    info = pool.epoch_info
    assert info is not None
    assert (info.number, info.adapters, info.pool) == (1, 3, 4)
    path = epochs.path_of(pool.path, info.key)
    assert pool.prune() == []
    second = pool.renew_epoch()
    assert (second.number, second.adapters, second.pool) == (2, 4, 4)
    assert second.key != info.key
    assert path.exists()  # of those who have the pool open
    assert pool.prune() == [path]
    assert Pool.open(pool.path).epoch_info == second
    assert pool.ridge == second.ridge
    assert json.loads((pool.path / store.MANIFEST).read_text())["format"] == store.FORMAT


def test_the_same_samples_give_the_same_epoch(pool: Pool) -> None:
    first = pool.epoch_info
    assert first is not None
    assert pool.renew_epoch(["gamma", "beta", "alpha", "beta"]).key == first.key
    with pytest.raises(UnknownNameError):
        pool.renew_epoch(["alhpa"])
    with pytest.raises(InputError, match="at least one"):
        pool.renew_epoch([])
    assert pool.epoch_key == Pool.open(pool.path).epoch_key == first.key


def test_an_older_version_that_tunes_changes_nothing_under_the_epoch(pool: Pool, embedder: Any) -> None:
    before = told(Planner(pool, get_method("hilora"), embedder))
    path = pool.path / store.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ridge": 0.1, "calibration": None}))
    assert told(Planner(Pool.open(pool.path), get_method("hilora"), embedder)) == before


def test_tuning_leaves_an_epoch_as_it_is_and_dropping_it_fits_from_nothing_again(
    pool: Pool, add: Add, embedder: Any, quick_tuning: None
) -> None:
    info = pool.epoch_info
    add("late", "beta", 8)
    pool.tune(always=True)
    assert pool.epoch_info == info
    pool.drop_epoch()
    assert pool.epoch_info is None
    assert pool.tuned_on == 5
    again = Pool.open(shutil.copytree(pool.path, pool.path.parent / "again"))
    again.tune(always=True)
    assert_alike(*(told(Planner(each, get_method("hilora-plus"), embedder)) for each in (pool, again)))


def test_an_epoch_is_stale_once_a_pool_has_grown_or_shrunk_by_a_tenth(pool: Pool, shared_pool: Any) -> None:
    info = EpochInfo("0" * 64, 1, 20, 50, 1e-3, "", "")
    assert [info.is_stale(size) for size in (45, 46, 50, 54, 55)] == [True, False, False, False, True]
    assert [info.is_stale(500, among) for among in (18, 19, 20, 21, 22)] == [True, False, False, False, True]
    assert not pool.epoch_is_stale()
    assert pool.epoch_is_stale(only=pool.names)
    pool.remove("delta")
    assert pool.epoch_is_stale()
    assert shared_pool("llama")[1].epoch_is_stale()  # has none


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:900]),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\x01" * 9),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_its_file_no_prompt_is_routed(pool: Pool, embedder: Any, damage: str) -> None:
    assert pool.epoch_info is not None
    DAMAGES[damage](epochs.path_of(pool.path, pool.epoch_info.key))
    opened = Pool.open(pool.path)
    for method in ("hilora", "hilora-plus"):
        with pytest.raises(PoolError, match=r"epoch of .* missing or damaged.*renew_epoch"):
            Planner(opened, get_method(method), embedder)
    opened.renew_epoch()
    assert told(Planner(Pool.open(pool.path), get_method("hilora"), embedder))


@pytest.mark.parametrize(
    "wrong",
    [[], "x", {"key": "../pool"}, {"key": "0" * 63}, {"number": "1"}, {"pool": None}, {"key": 3}],
)
def test_a_manifest_that_names_no_epoch_is_damaged(pool: Pool, wrong: Any) -> None:
    path = pool.path / store.MANIFEST
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"epoch": whole["epoch"] | wrong if isinstance(wrong, dict) else wrong}))
    with pytest.raises(PoolError, match="is damaged"):
        Pool.open(pool.path)


def test_an_epoch_of_other_samples_is_refused(pool: Pool) -> None:
    path = pool.path / store.MANIFEST
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"epoch": whole["epoch"] | {"embedder": "other"}}))
    with pytest.raises(MismatchError, match="another embedder"):
        _ = Pool.open(pool.path).epoch


def test_kept_statistics_serve_a_pool_that_has_changed(
    pool: Pool, add: Add, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is each adapter's own holds whoever comes and goes: only newcomers' samples are read."""
    path = pool.fit(always=True)
    assert path is not None
    add("late", "beta", 8)
    pool.remove("gamma")
    want = told(Planner(pool, get_method("hilora-plus"), embedder))
    read: list[str] = []
    samples = PoolFolder._samples

    def reading(self: PoolFolder, entry: Any) -> Any:
        read.append(entry.name)
        return samples(self, entry)

    monkeypatch.setattr(PoolFolder, "_samples", reading)
    assert_alike(told(Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)), want)
    assert read == ["late"]
    assert pool.fit(always=True) == path  # one of four has gone, one has come: written again
    read.clear()
    assert_alike(told(Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)), want)
    assert read == []
    assert pool.prune()  # what gamma had
    assert path.exists()
    pool.renew_epoch()
    assert pool.prune()
    assert not path.exists()


def test_kept_statistics_that_do_not_fit_are_passed_over(
    pool: Pool, embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    want = told(Planner(pool, get_method("hilora-plus"), embedder))
    path = pool.fit(always=True)
    assert path is not None
    kept = statistics.read(pool.path, path.stem)
    assert kept is not None
    for wrong in ({"keys": kept["keys"][:2]}, {"meaning|place": kept["meaning|place"][:2]}):
        statistics.write(pool.path, path.stem, kept | wrong)
        caplog.clear()
        assert_alike(told(Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)), want)
        assert "were not used" in caplog.text
    assert stored.covers(kept, pool.sample_keys())
    assert not stored.covers(kept, pool.sample_keys()[:3])


def test_others_read_and_change_a_pool_while_its_epoch_is_made(
    pool: Pool, add: Add, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = epochs.learn

    def slowly(*args: Any) -> Any:
        add("late", "beta", 8)
        Pool.open(pool.path).remove("gamma")
        assert told(Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder))
        return learn(*args)

    monkeypatch.setattr(epochs, "learn", slowly)
    info = Pool.open(pool.path).renew_epoch()
    now = Pool.open(pool.path)
    assert now.epoch_info == info
    assert sorted(now.names) == ["alpha", "beta", "delta", "late"]


def test_the_commands_leave_an_epoch_where_it_is(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    info = pool.epoch_info
    for command in (["disable", "beta"], ["remove", "delta"], ["fit"], ["prune"], ["list"]):
        name = [] if len(command) == 1 else command[1:]
        CliRunner().invoke(app, ["pool", command[0], *name, "--pool", str(pool.path)], catch_exceptions=False)
    assert Pool.open(pool.path).epoch_info == info
    assert not caplog.records


def test_an_epoch_may_be_left_by_all_whom_it_was_learned_from(pool: Pool, add: Add, embedder: Any) -> None:
    planner = Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)
    names: Sequence[str] = pool.names
    for name in names:
        pool.remove(name)
    empty = planner.over(Pool.open(pool.path))
    assert told(empty) == [()] * len(PROMPTS)
    add("late", "beta", 8)
    view = Pool.open(pool.path)
    assert_alike(told(empty.over(view)), told(Planner(view, get_method("hilora-plus"), embedder)))
    assert_alike(told(planner.over(view)), told(empty.over(view)))
