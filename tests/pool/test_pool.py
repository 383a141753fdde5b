"""Laws of the pool folder: each change wholly or not at all, readers undisturbed, texts never kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hilora import HiLoRA, Planner, get_method
from hilora.base.embed import EmbedderInfo, describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.errors import HiloraError, InputError, PoolError, UnknownNameError
from hilora.pool import Pool, reading, store
from hilora.pool.folder import PoolFolder
from hilora.route.experts import WEIGHTS, Calibration, calibrate
from hilora.route.features import Features, hash_terms

TASKS = ["alpha", "beta", "gamma", "delta"]
Add = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tiny: Any) -> Any:
    """The tiny model, its description and its sites."""
    model = tiny.model("llama")
    return model, describe_model("tiny", model, tiny.tokenizer()), tiny.sites(model, "llama")


@pytest.fixture(scope="module")
def folder(base: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A PEFT folder per seed, written once."""
    home, sites = tmp_path_factory.mktemp("adapters"), dict(list(base[2].items())[:2])

    def get(seed: int) -> Path:
        path = home / str(seed)
        return path if path.exists() else tiny.adapter(path, sites, rank=2, seed=seed)

    return get


@pytest.fixture
def add(folder: Callable[[int], Path], embedder: Any, tiny: Any) -> Add:
    """Put the adapter of a seed into a pool, with samples of a task."""

    def put(pool: Pool, name: str, seed: int = 0, task: str = "alpha", **options: Any) -> Any:
        return pool.add(name, folder(seed), tiny.texts(task, 8, seed), embedder, **options)

    return put


@pytest.fixture
def pool(tmp_path: Path, base: Any, embedder: Any) -> Pool:
    """An empty pool."""
    return Pool.create(tmp_path / "pool", base[1], describe_embedder(embedder))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, with its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def problems(pool: Pool) -> list[str]:
    return [problem for _, problem in pool.check() if problem]


def chosen(monkeypatch: pytest.MonkeyPatch, ridge: float = 2e-3, **weights: float) -> None:
    """Let tuning choose these, and at once."""
    monkeypatch.setattr("hilora.pool.pool.choose_ridge", lambda _: ridge)
    monkeypatch.setattr("hilora.pool.pool.calibrate", lambda _: Calibration(WEIGHTS | weights))


# --- what is kept -----------------------------------------------------------------------------------


def test_a_pool_keeps_embeddings_and_never_texts(pool: Pool, folder: Any, embedder: Any) -> None:
    texts = [f"Confidential{i} patient-{i} said sesquipedalian things" for i in range(6)]
    entry = pool.add("a", folder(0), texts, embedder)
    for name, content in contents(pool.path).items():
        for word in [*texts, "Confidential", "patient-", "sesquipedalian"]:
            assert word.encode() not in content, name
            assert word.encode("utf-16-le") not in content, name
    with safe_open(pool.path / "samples" / f"{entry.samples}.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["characters", "embeddings", "outlines", "phrases", "phrases_of_text"]
        assert file.metadata() is None
        torch.testing.assert_close(file.get_tensor("embeddings"), embedder(texts))


def test_opening_reads_the_manifest_only(pool: Pool, add: Add) -> None:
    entry = add(pool, "a")
    for part in ("adapters", "samples", "base.json"):
        (pool.path / part).rename(pool.path / f"{part}.away")
    opened = Pool.open(pool.path)
    assert opened.names == ["a"]
    assert opened.entries == (entry,)
    for read in (lambda: opened.factors(entry.hash), opened.samples, lambda: opened.base):
        with pytest.raises(PoolError) as caught:
            read()
        assert str(pool.path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(PoolError, match="hilora pool check"):
        opened.factors(entry.hash)


def test_a_thousand_adapters_open_without_touching_a_file_of_theirs(
    pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pool, "a")
    manifest = json.loads((pool.path / "pool.json").read_text())
    (one,) = manifest["adapters"]
    manifest["adapters"] = [
        one | {"name": f"a{i}", "hash": f"{i * 7919 % 1000:064x}", "samples": f"{i:064x}"} for i in range(1000)
    ]
    (pool.path / "pool.json").write_text(json.dumps(manifest))
    shutil.rmtree(pool.path / "adapters")
    shutil.rmtree(pool.path / "samples")

    def refuse(path: Path) -> Any:
        raise AssertionError(f"read {path}")

    monkeypatch.setattr(reading, "read_tensors", refuse)
    opened = Pool.open(pool.path)
    assert len(opened) == 1000
    assert [entry.hash for entry in opened.entries] == sorted(entry.hash for entry in opened.entries)
    assert int(opened.allowed(deny=["a1", "a2"]).sum()) == 998


def test_a_pool_is_not_made_where_one_is(pool: Pool, add: Add, base: Any, embedder: Any) -> None:
    add(pool, "a")
    before = contents(pool.path)
    with pytest.raises(PoolError, match="holds a pool already"):
        Pool.create(pool.path, base[1], describe_embedder(embedder))
    assert contents(pool.path) == before


# --- samples -------------------------------------------------------------------------------------------

ODD = ["Is it?\n\nYes.", "\u00a7", "word " * 50, "\u0107ma \U0001f600", "twice twice", "twice twice"]


def assert_same(found: Features, want: Features) -> None:
    torch.testing.assert_close(found.embeddings, want.embeddings, rtol=0, atol=0)
    assert (found.terms is None) == (want.terms is None)
    if found.terms is not None and want.terms is not None:
        for name in ("characters", "phrases", "text"):
            one, other = getattr(found.terms, name), getattr(want.terms, name)
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name


@pytest.mark.parametrize("terms", [True, False])
def test_samples_come_back_as_they_were_looked_at(terms: bool, pool: Pool, folder: Any, embedder: Any) -> None:
    given = [" ", *ODD[:3], "", *ODD[3:]]  # blank lines are no samples
    entry = pool.add("a", folder(0), given, embedder, terms=terms)
    assert entry.num_samples == len(ODD)
    want = Features(embedder(ODD), hash_terms(ODD) if terms else None)
    for view in (pool, Pool.open(pool.path)):
        (found,) = view.samples()
        assert_same(found, want)
    assert problems(pool) == []


def test_samples_lie_in_the_pools_order_with_or_without_terms(pool: Pool, add: Add, tiny: Any, embedder: Any) -> None:
    for seed, task in enumerate(TASKS):
        add(pool, task, seed, task, terms=seed % 2 == 0)
    for entry, found in zip(pool.entries, pool.samples(), strict=True):
        seed = TASKS.index(entry.name)
        texts = tiny.texts(entry.name, 8, seed)
        assert_same(found, Features(embedder(texts), None if seed % 2 else hash_terms(texts)))


def test_samples_without_terms_have_the_content_hash_that_they_always_had(
    pool: Pool, folder: Any, embedder: Any
) -> None:
    """Pools that were made before terms were kept stay whole."""
    vectors = embedder(ODD)
    want = hashlib.sha256(repr(tuple(vectors.shape)).encode() + vectors.numpy().tobytes()).hexdigest()
    assert pool.add("a", folder(0), ODD, embedder, terms=False).samples == want
    with safe_open(pool.path / "samples" / f"{want}.safetensors", "pt") as file:
        assert list(file.keys()) == ["embeddings"]


def test_samples_of_another_wording_are_another_content(pool: Pool, folder: Any) -> None:
    def alike(texts: Any) -> Any:
        return torch.eye(24)[: len(texts)]

    lists = [ODD, [*ODD[:-1], "twice twice."], ["word " * 50, *ODD[:2], *ODD[3:]]]
    found = [pool.add(f"a{i}", folder(0), texts, alike).samples for i, texts in enumerate(lists)]
    found += [pool.add("b", folder(0), ODD, alike, terms=False).samples]
    assert len(set(found)) == 4
    assert pool.add("again", folder(0), ODD, alike).samples == found[0]


@pytest.mark.parametrize("lost", ["embeddings", "phrases", "phrases_of_text"])
def test_a_samples_file_that_lacks_a_part_is_damaged(lost: str, pool: Pool, add: Add) -> None:
    path = pool.path / "samples" / f"{add(pool, 'bad').samples}.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != lost}, path)
    with pytest.raises(PoolError, match="hilora pool check"):
        pool.samples()
    assert lost in problems(pool)[0]


def test_tuning_stores_the_calibration_that_the_samples_give(pool: Pool, add: Add, embedder: Any) -> None:
    for seed, task in enumerate(["alpha", "alpha", "beta"]):  # two that are hard to tell apart
        add(pool, f"a{seed}", seed, task, terms=False)
    assert pool.calibration is None
    assert Pool.open(pool.path).calibration is None
    pool.tune()
    manifest = json.loads((pool.path / "pool.json").read_text())
    want = calibrate(pool.samples())
    assert manifest["calibration"] == json.loads(json.dumps(asdict(want)))
    assert pool.calibration == Pool.open(pool.path).calibration == want
    assert want.weights != WEIGHTS
    assert want.seen_above is not None
    planner = Planner(Pool.open(pool.path), get_method("hilora-plus"), embedder)
    assert planner.method.router.model_.weights_ == want.weights  # type: ignore[union-attr]


def test_a_calibration_lasts_through_other_changes_until_the_pool_is_tuned_again(
    pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        add(pool, f"a{seed}", seed)
    chosen(monkeypatch, 2e-3, phrases=0.5)
    pool.tune()
    chosen(monkeypatch, 3e-3, phrases=0.7)
    add(pool, "new", 7)
    pool.enable("a1", False)
    pool.tune()  # a seventh of seven is no quarter
    assert (pool.ridge, pool.calibration, pool.tuned_on) == (2e-3, Calibration(WEIGHTS | {"phrases": 0.5}), 6)
    add(pool, "newer", 8)
    pool.tune()
    assert (pool.ridge, pool.calibration, pool.tuned_on) == (3e-3, Calibration(WEIGHTS | {"phrases": 0.7}), 8)
    opened = Pool.open(pool.path)
    assert opened.ridge == pool.ridge
    assert opened.calibration == pool.calibration


def test_a_manifest_from_before_there_was_a_calibration_opens_and_routes(
    pool: Pool, add: Add, tiny: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, task in enumerate(TASKS):
        add(pool, task, seed, task, terms=False)
    path = pool.path / "pool.json"
    manifest = json.loads(path.read_text())
    del manifest["calibration"]
    path.write_text(json.dumps(manifest))
    opened = Pool.open(pool.path)
    assert opened.calibration is None
    assert opened.names == pool.names
    planner = Planner(opened, get_method("hilora-plus"), embedder)
    for task in TASKS:
        assert planner.explain(planner.route(tiny.texts(task, 1, 99)))[0][0].name == task
    chosen(monkeypatch)
    opened.tune(always=True)
    assert Pool.open(pool.path).calibration == Calibration(WEIGHTS)


# --- order, names, contents ---------------------------------------------------------------------------


def test_adapters_are_ordered_by_content_whatever_the_order_of_adding(
    tmp_path: Path, base: Any, embedder: Any, add: Add
) -> None:
    orders = [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]]
    found = []
    for i, order in enumerate(orders):
        pool = Pool.create(tmp_path / str(i), base[1], describe_embedder(embedder))
        for seed in order:
            add(pool, TASKS[seed], seed)
        assert pool.names == Pool.open(pool.path).names
        found.append([(entry.name, entry.hash, entry.samples) for entry in pool.entries])
    assert found[0] == found[1] == found[2]
    assert [hash for _, hash, _ in found[0]] == sorted(hash for _, hash, _ in found[0])


def test_a_taken_name_is_refused_and_nothing_is_written(pool: Pool, add: Add) -> None:
    add(pool, "a", 0)
    stale = Pool.open(pool.path)
    add(pool, "b", 1)
    before = contents(pool.path)
    for view, name in ((pool, "a"), (stale, "b")):  # `stale` learns of "b" under the lock only
        with pytest.raises(InputError, match=f"has an adapter '{name}' already.*--replace"):
            add(view, name, 2)
    assert contents(pool.path) == before


def test_replace_changes_the_content_under_the_same_name(pool: Pool, add: Add) -> None:
    old = add(pool, "a", 0)
    new = add(pool, "a", 1, replace=True)
    assert pool.names == Pool.open(pool.path).names == ["a"]
    assert (pool.entries[0].hash, pool.entries[0].samples) == (new.hash, new.samples)
    assert new.hash != old.hash
    assert new.samples != old.samples


def test_replace_of_a_name_that_is_free_adds_it(pool: Pool, add: Add) -> None:
    add(pool, "a", replace=True)
    assert Pool.open(pool.path).names == ["a"]


def test_two_names_may_share_one_content(pool: Pool, add: Add) -> None:
    one, other = add(pool, "one"), add(pool, "other")
    assert (one.hash, one.samples) == (other.hash, other.samples)
    assert pool.names == ["one", "other"]
    assert len(list((pool.path / "adapters").iterdir())) == 1
    pool.remove("one")
    assert pool.prune() == []
    assert problems(pool) == []
    assert pool.names == ["other"]


def test_a_disabled_adapter_is_never_routed_to_until_enabled(pool: Pool, tiny: Any, add: Add, embedder: Any) -> None:
    for seed, task in enumerate(TASKS):
        add(pool, task, seed, task)

    def routed() -> list[str]:
        method = get_method("hilora-gs", candidates="top", k=4)
        planner = Planner(Pool.open(pool.path), method, embedder)
        return [choice.name for choice in planner.explain(planner.route(tiny.texts("beta", 1, 99)))[0]]

    before = routed()
    assert before[0] == "beta"
    pool.enable("beta", False)
    assert not Pool.open(pool.path).entries[pool.index("beta")].enabled
    assert "beta" not in routed()
    pool.enable("beta")
    assert routed() == before


def test_an_unknown_name_is_refused_and_nothing_is_written(pool: Pool, add: Add) -> None:
    add(pool, "alpha")
    before = contents(pool.path)
    for change in (pool.remove, pool.enable, pool.index):
        with pytest.raises(UnknownNameError, match="Did you mean 'alpha'"):
            change("alhpa")
    assert contents(pool.path) == before


# --- readers beside writers -----------------------------------------------------------------------------


def test_a_view_keeps_what_it_opened_until_it_reloads(pool: Pool, add: Add) -> None:
    entries = [add(pool, name, seed) for seed, name in enumerate("abc")]
    view = PoolFolder.open(pool.path)
    kept, version = view.entries, view.version
    weights = {entry.hash: view.factors(entry.hash) for entry in entries}
    writer = Pool.open(pool.path)
    writer.remove("a")
    add(writer, "b", 7, replace=True)
    writer.enable("c", False)
    add(writer, "d", 8)
    assert (view.entries, view.version) == (kept, version)
    assert len(view.samples()) == 3
    for content, factors in weights.items():
        for site, pair in view.factors(content).items():
            assert all(torch.equal(x, y) for x, y in zip(pair, factors[site], strict=True))
    view.reload()
    assert sorted(view.names) == ["b", "c", "d"]
    assert view.entries == writer.entries
    assert view.version == version + 4
    assert not view.entries[view.index("c")].enabled


def test_prune_deletes_what_no_adapter_uses_and_nothing_else(pool: Pool, add: Add) -> None:
    old, kept = add(pool, "a", 0), add(pool, "b", 1)
    view = Pool.open(pool.path)
    pool.remove("a")
    partial = [pool.path / ".partial-x", pool.path / "adapters" / ".partial-y", pool.path / "samples" / ".partial-z"]
    for path in partial:
        path.write_bytes(b"half")
    before = contents(pool.path)
    gone = {path.name for path in pool.prune()}
    assert gone == {f"{old.hash}.safetensors", f"{old.samples}.safetensors", *(path.name for path in partial)}
    after = contents(pool.path)
    assert {Path(name).name for name in before.keys() - after.keys()} == gone
    assert {"pool.json", "base.json", f"adapters/{kept.hash}.safetensors", f"samples/{kept.samples}.safetensors"} == {
        *after
    }
    assert problems(Pool.open(pool.path)) == []
    with pytest.raises(PoolError, match="hilora pool check"):
        view.factors(old.hash)
    assert pool.prune() == []


def test_a_router_keeps_the_pool_it_was_built_on(
    pool: Pool, base: Any, tiny: Any, tokenizer: Any, embedder: Any, add: Add
) -> None:
    for seed, task in enumerate(TASKS[:3]):
        add(pool, task, seed, task)
    prompts = [text for task in TASKS for text in tiny.texts(task, 2, 5)]
    router = HiLoRA.from_pretrained(
        base[0], pool, "hilora-gs", tokenizer=tokenizer, embedder=embedder, adapter_memory=0, candidates="top", k=2
    )
    before = router.generate(prompts, max_new_tokens=8)
    pool.remove("alpha")
    add(pool, "new", 11, "delta")
    after = router.generate(prompts, max_new_tokens=8)
    assert [(a.text, a.rocs) for a in after] == [(a.text, a.rocs) for a in before]


def test_threads_that_add_at_the_same_time_lose_nothing(pool: Pool, folder: Any, tiny: Any, embedder: Any) -> None:
    for seed in range(4):
        folder(seed)
    start = threading.Barrier(4)

    def work(worker: int) -> None:
        mine = Pool.open(pool.path)
        start.wait(60)
        for i in range(3):
            mine.add(f"w{worker}.{i}", folder((worker + i) % 4), tiny.texts("beta", 6, 10 * worker + i), embedder)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, worker) for worker in range(4)]:
            done.result()
    opened = Pool.open(pool.path)
    assert sorted(opened.names) == sorted(f"w{worker}.{i}" for worker in range(4) for i in range(3))
    assert opened.version == 12
    assert problems(opened) == []


def test_removing_an_adapter_that_another_has_removed_succeeds(pool: Pool, add: Add) -> None:
    add(pool, "a")
    stale = Pool.open(pool.path)
    pool.remove("a")
    stale.remove("a")
    assert len(Pool.open(pool.path)) == 0


def test_enabling_an_adapter_that_another_has_removed_is_refused_clearly(pool: Pool, add: Add) -> None:
    add(pool, "a")
    stale = Pool.open(pool.path)
    pool.remove("a")
    with pytest.raises(HiloraError):
        stale.enable("a", False)


def test_reembedding_while_another_adds_is_refused_clearly(
    pool: Pool, add: Add, tiny: Any, embedder: Any, base: Any
) -> None:
    add(pool, "a")
    stale = Pool.open(pool.path)
    add(pool, "b", 1)
    before = contents(pool.path)
    with pytest.raises(HiloraError):
        stale.reembed({"a": tiny.texts("beta", 8)}, describe_embedder(embedder), embedder)
    assert contents(pool.path)["pool.json"] == before["pool.json"]


# --- embedding anew ---------------------------------------------------------------------------------------


def test_reembedding_changes_embedder_and_embeddings_and_no_adapter(
    pool: Pool, add: Add, tiny: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch)
    hashes = {add(pool, name, seed).hash for seed, name in enumerate("ab")}
    other = EmbedderInfo("other", embedder.dim, "embed", "1111")
    texts = {name: tiny.texts("gamma", 9, seed) for seed, name in enumerate("ab")}
    pool.reembed(texts, other, lambda batch: -embedder(batch))
    opened = Pool.open(pool.path)
    assert opened.embedder == other
    assert {entry.hash for entry in opened.entries} == hashes
    for entry, own in zip(opened.entries, opened.samples(), strict=True):
        assert entry.num_samples == len(own) == 9
        torch.testing.assert_close(own.embeddings, -embedder(texts[entry.name]))


def test_reembedding_keeps_terms_where_they_were_kept(
    pool: Pool, add: Add, tiny: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch)
    for seed, name in enumerate("abc"):
        add(pool, name, seed, terms=name != "b")
    texts = {name: tiny.texts("gamma", 9, seed) for seed, name in enumerate("abc")}
    pool.reembed(texts, EmbedderInfo("other", embedder.dim, "embed", "1111"), lambda batch: -embedder(batch))
    opened = Pool.open(pool.path)
    for entry, found in zip(opened.entries, opened.samples(), strict=True):
        own = texts[entry.name]
        assert_same(found, Features(-embedder(own), None if entry.name == "b" else hash_terms(own)))
    assert problems(opened) == []


def test_reembedding_without_the_samples_of_every_adapter_changes_nothing(
    pool: Pool, add: Add, tiny: Any, embedder: Any
) -> None:
    add(pool, "a", 0)
    add(pool, "b", 1)
    before = contents(pool.path)
    with pytest.raises(InputError, match=r"none for b\..*jsonl"):
        pool.reembed({"a": tiny.texts("beta", 8)}, EmbedderInfo("other", 24, "embed", "1111"), embedder)
    assert contents(pool.path) == before
    assert pool.embedder == describe_embedder(embedder)


# --- failures -----------------------------------------------------------------------------------------------


def test_a_damaged_manifest_leaves_a_view_as_it_was_and_a_restored_one_is_taken(pool: Pool, add: Add) -> None:
    add(pool, "one", 0)
    add(pool, "two", 1)
    whole = (pool.path / "pool.json").read_bytes()
    broken = json.loads(whole)
    del broken["ridge"], broken["adapters"][0]
    (pool.path / "pool.json").write_text(json.dumps(broken))
    with pytest.raises(PoolError, match="damaged"):
        pool.reload()
    assert sorted(pool.names) == ["one", "two"]
    (pool.path / "pool.json").write_bytes(whole)
    pool.enable("one", False)
    assert sorted(Pool.open(pool.path).names) == sorted(pool.names) == ["one", "two"]


CHANGES: dict[str, Callable[[Pool, Add], Any]] = {
    "add": lambda pool, add: add(pool, "new", 5),
    "replace": lambda pool, add: add(pool, "one", 5, replace=True),
    "remove": lambda pool, _: pool.remove("one"),
    "disable": lambda pool, _: pool.enable("one", False),
    "tune": lambda pool, _: pool.tune(always=True),
}
STEPS = {
    "write": (store, "write_whole"),
    "manifest": (store, "write_manifest"),
    "replace": (os, "replace"),
    "fsync": (os, "fsync"),
}
REMEDIES = {errno.ENOSPC: "free some", errno.EROFS: "copy the pool", errno.EACCES: "copy the pool"}


def break_step(monkeypatch: pytest.MonkeyPatch, step: str, code: int, at: int | None = None) -> None:
    """Let the operating system refuse a step: always, or the `at`-th time."""
    module, name = STEPS[step]
    real, calls = getattr(module, name), count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if at is None or call == at:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)


def assert_as_before(path: Path, before: dict[str, bytes]) -> None:
    """The manifest and all that it names are the same bytes, and nothing lies around half written."""
    after = contents(path)
    assert after["pool.json"] == before["pool.json"]
    assert {name: after.get(name) for name in before} == before
    assert not list(path.rglob(".partial-*"))
    assert problems(Pool.open(path)) == []


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_disk_refuses_leaves_the_old_state(
    change: str, step: str, code: int, pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pool, "one", 0)
    add(pool, "two", 1)
    chosen(monkeypatch)
    before = contents(pool.path)
    with monkeypatch.context() as patch:
        break_step(patch, step, code)
        with pytest.raises(PoolError) as caught:
            CHANGES[change](pool, add)
    message = str(caught.value)
    assert "\n" not in message
    assert REMEDIES[code] in message
    assert str(pool.path) in message
    assert isinstance(caught.value.__cause__, OSError)
    assert_as_before(pool.path, before)
    CHANGES[change](Pool.open(pool.path), add)  # the lock is free, and the change goes through now


@pytest.mark.parametrize(("step", "at"), [("write", 2), ("write", 3), ("replace", 2), ("replace", 3)])
def test_an_addition_that_fails_half_way_leaves_the_old_state(
    step: str, at: int, pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pool, "one", 0)
    before = contents(pool.path)
    with monkeypatch.context() as patch:
        break_step(patch, step, errno.ENOSPC, at)
        with pytest.raises(PoolError, match="free some"):
            add(pool, "new", 5)
    assert_as_before(pool.path, before)


@pytest.mark.parametrize("at", [1, 3, 5])  # each file; 2, 4 and 6 flush its folder
def test_an_addition_whose_flush_fails_leaves_the_old_state(
    at: int, pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pool, "one", 0)
    before = contents(pool.path)
    with monkeypatch.context() as patch:
        break_step(patch, "fsync", errno.ENOSPC, at)
        with pytest.raises(PoolError, match="Nothing was changed"):
            add(pool, "new", 5)
    assert_as_before(pool.path, before)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_an_addition_whose_folder_cannot_be_flushed_is_an_addition(
    at: int, pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are in their places, so saying that nothing was changed would be wrong."""
    with monkeypatch.context() as patch:
        break_step(patch, "fsync", errno.ENOSPC, at)
        add(pool, "new", 5)
    assert Pool.open(pool.path).names == ["new"]
    assert problems(pool) == []


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_failed_change_the_object_agrees_with_the_folder_and_the_change_can_be_tried_again(
    change: str, pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(pool, "one", 0)
    add(pool, "two", 1)
    chosen(monkeypatch)
    state = (pool.entries, pool.version, pool.ridge, pool.calibration, pool.tuned_on, pool.embedder)
    with monkeypatch.context() as patch:
        break_step(patch, "manifest", errno.ENOSPC)
        with pytest.raises(PoolError):
            CHANGES[change](pool, add)
    assert (pool.entries, pool.version, pool.ridge, pool.calibration, pool.tuned_on, pool.embedder) == state
    CHANGES[change](pool, add)


def test_a_pool_on_a_read_only_disk_says_so(pool: Pool, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add(pool, "one")
    before, real = contents(pool.path), os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(pool.path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PoolError, match="read-only; copy the pool"):
            pool.remove("one")
        assert len(Pool.open(pool.path).samples()) == 1  # reading goes on
    assert_as_before(pool.path, before)


@pytest.mark.parametrize("step", STEPS)
def test_a_pool_that_cannot_be_made_leaves_none(
    step: str, tmp_path: Path, base: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_step(patch, step, errno.ENOSPC)
        with pytest.raises(PoolError, match="free some"):
            Pool.create(tmp_path / "pool", base[1], describe_embedder(embedder))
    assert not list(tmp_path.rglob("pool.json"))
    assert not list(tmp_path.rglob(".partial-*"))
    assert len(Pool.create(tmp_path / "pool", base[1], describe_embedder(embedder))) == 0


def test_an_embedder_that_fails_leaves_the_old_state(pool: Pool, folder: Any) -> None:
    before = contents(pool.path)

    def broken(texts: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        pool.add("a", folder(0), ["x", "y", "z"], broken)
    with pytest.raises(InputError, match="NaN or infinite"):
        pool.add("a", folder(0), ["x", "y", "z"], lambda texts: torch.full((len(texts), 24), float("nan")))
    assert contents(pool.path) == before
    assert len(pool) == 0


# --- kill -9 ------------------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own, which shares the modules loaded here; its id."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(3)
    return process


def assert_usable(path: Path, add: Add, done: set[str]) -> None:
    """The pool opens, lacks nothing that was reported done, is sound, and takes another adapter."""
    opened = Pool.open(path)
    assert done <= set(opened.names)
    assert problems(opened) == []
    opened.prune()
    assert not list(path.rglob(".partial-*"))
    assert problems(opened) == []
    name = f"after{len(opened)}"
    add(opened, name, 900)
    assert name in Pool.open(path).names


def test_kill_9_at_any_time_leaves_the_old_or_the_new_state(
    pool: Pool, add: Add, folder: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    for seed in range(20):
        folder(seed)
    folder(900)
    log = tmp_path / "done"
    for attempt in range(4):

        def work(attempt: int = attempt) -> None:
            mine = Pool.open(pool.path)
            with log.open("a") as out:
                for i in range(1000):
                    name = f"k{attempt}.{i}"
                    add(mine, name, i % 20, TASKS[i % 4])
                    out.write(name + "\n")
                    out.flush()

        log.write_text("")
        process = forked(work)
        deadline = time.monotonic() + 300
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        done = set(log.read_text().split("\n")[:-1])
        assert done
        assert_usable(pool.path, add, done)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_kill_9_beside_the_appearance_of_any_file_leaves_the_old_or_the_new_state(
    at: int, after: bool, pool: Pool, add: Add, folder: Any
) -> None:
    add(pool, "old", 0)
    for seed in (5, 900):
        folder(seed)
    real, calls = os.replace, count(1)

    def killing(source: Any, target: Any) -> None:
        last = next(calls) == at
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        os.replace = killing
        add(Pool.open(pool.path), "new", 5)

    _, status = os.waitpid(forked(work), 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert set(Pool.open(pool.path).names) == ({"old", "new"} if (at, after) == (3, True) else {"old"})
    assert_usable(pool.path, add, {"old"})


# --- damage -------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


DAMAGES = [(part, how) for part in ("adapters", "samples") for how in ("truncated", "empty", "missing")]


@pytest.mark.parametrize(
    ("part", "how"),
    [*DAMAGES, ("adapters", "flipped"), ("samples", "flipped")],
)
def test_check_finds_a_damaged_file_and_names_its_adapter_only(part: str, how: str, pool: Pool, add: Add) -> None:
    bad, _ = add(pool, "bad", 0), add(pool, "good", 1)
    assert problems(pool) == []
    damage(pool.path / part / f"{bad.hash if part == 'adapters' else bad.samples}.safetensors", how)
    found = {entry.name: problem for entry, problem in Pool.open(pool.path).check()}
    assert found["bad"]
    assert "\n" not in found["bad"]
    assert found["good"] == ""


@pytest.mark.parametrize("part", ["adapters", "samples"])
def test_check_finds_a_file_that_was_exchanged_for_another(part: str, pool: Pool, add: Add) -> None:
    bad, good = add(pool, "bad", 0), add(pool, "good", 1)
    files = {"adapters": bad.hash, "samples": bad.samples}
    other = {"adapters": f"samples/{good.samples}", "samples": f"adapters/{good.hash}"}[part]
    shutil.copy(pool.path / f"{other}.safetensors", pool.path / part / f"{files[part]}.safetensors")
    found = {entry.name: problem for entry, problem in Pool.open(pool.path).check()}
    assert found["bad"]
    assert found["good"] == ""


def test_removing_and_adding_again_mends_a_damaged_adapter(pool: Pool, add: Add) -> None:
    entry = add(pool, "bad", 0)
    damage(pool.path / "adapters" / f"{entry.hash}.safetensors", "truncated")
    with pytest.raises(PoolError, match="remove and add the adapter again"):
        pool.factors(entry.hash)
    pool.remove("bad")
    add(pool, "bad", 0)
    assert problems(pool) == []


def test_a_pool_and_a_router_say_what_they_are_in_one_line(shared_pool: Any, embedder: Any, tiny: Any) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(model, pool, "hilora-gs", tokenizer=tiny.tokenizer(), embedder=embedder)
    said = f"{str(pool.path)!r}: 4 adapters for tiny, version {pool.version})"
    assert repr(pool) == f"Pool({said}"
    assert repr(PoolFolder.open(pool.path)) == f"PoolFolder({said}"
    assert repr(router) == f"HiLoRA(base 'tiny', method 'hilora-gs', Pool({said})"
    assert "\n" not in repr(router)


def test_a_pool_whose_base_cannot_be_read_says_so_and_no_more(pool: Pool) -> None:
    (pool.path / store.BASE).write_text("{")
    assert "0 adapters for an unreadable base" in repr(Pool.open(pool.path))
