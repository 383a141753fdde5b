"""Laws of the manifest's format: older pools lose nothing, newer fields are kept, newer pools are refused.

`format1/` was written by the last code that wrote format 1: a pool, what routing over it said, and that code's
`store.py`, which stands here for an older hilora.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilora import HiLoRA, Planner, get_method
from hilora.base.embed import EmbedderInfo
from hilora.errors import InputError, MismatchError, PoolError
from hilora.pool import Pool, manifest, store
from hilora.pool.view import Entry
from hilora.route.experts import Calibration

ROOT = Path(__file__).parents[2]
FORMAT1 = Path(__file__).parent / "format1"
COPY = "pool.json.format1"
EXTRA = {
    "tenant": "acme",
    "state": "tried out",
    "note": "ask \u0106ma \ud800 first",  # half a character, as a careless writer leaves it
    "release": "3",
    "template": "chat-1",
    "upload": "4f",
    "statistics": {"mean": [0.5, 1, True], "of": None},
    "unheard-of": [{"deep": {"er": 1.0}}],
    "extra": "a field of this name",
}
"""Optional fields of an adapter, some of which this version knows."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the pool of format 1."""
    return Path(shutil.copytree(FORMAT1 / "pool", tmp_path / "old"))


@pytest.fixture(scope="module")
def older() -> Any:
    """What an older hilora reads a manifest with."""
    module = types.ModuleType("older")
    exec((FORMAT1 / "store.txt").read_text(), vars(module))
    assert module.FORMAT == 1
    return module


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def read(pool: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pool / "pool.json").read_bytes())
    return found


def write(pool: Path, found: Any) -> None:
    (pool / "pool.json").write_text(json.dumps(found))


def lines(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each adapter's line."""
    return {line["name"]: line for line in found["adapters"]}


def edited(pool: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A pool whose manifest somebody has changed."""
    found = read(pool)
    change(found)
    write(pool, found)
    return pool


def routes(pool: Pool, embedder: Any, tiny: Any) -> dict[str, dict[str, list[Any]]]:
    told: dict[str, dict[str, list[Any]]] = {}
    for method in ("hilora", "hilora-plus"):
        planner = Planner(pool, get_method(method), embedder)
        for task in tiny.tasks:
            choices = planner.explain(planner.route(tiny.texts(task, 1, 99)))[0]
            told.setdefault(method, {})[task] = [[each.name, each.score, each.weight] for each in choices]
    return told


def assert_routes_as_then(pool: Pool, embedder: Any, tiny: Any) -> None:
    then, now = json.loads((FORMAT1 / "routes.json").read_text()), routes(pool, embedder, tiny)
    for method, by_task in then.items():
        for task, choices in by_task.items():
            assert [name for name, *_ in now[method][task]] == [name for name, *_ in choices]
            for (_, *found), (_, *want) in zip(now[method][task], choices, strict=True):
                assert found == pytest.approx(want, rel=1e-3, abs=2e-3)


# --- older pools ------------------------------------------------------------------------------------------


def test_a_pool_of_format_1_opens_as_it_was_and_is_not_written_to(old: Path, embedder: Any, tiny: Any) -> None:
    before = contents(old)
    pool = Pool.open(old)
    then = read(old)
    assert then["format"] == 1
    assert [vars(entry) for entry in pool.entries] == [line | {"extra": {}} for line in then["adapters"]]
    assert (pool.version, pool.ridge, pool.tuned_on) == (then["version"], then["ridge"], then["tuned_on"])
    assert pool.embedder == EmbedderInfo(**then["embedder"])
    assert pool.calibration == Calibration.from_json(then["calibration"])
    assert pool.base.to_json() == (old / "base.json").read_text()
    assert (pool.extra, manifest.optional(pool.entries[0])) == ({}, dict(manifest.OPTIONAL))
    assert not [problem for _, problem in pool.check() if problem]
    assert_routes_as_then(pool, embedder, tiny)
    assert contents(old) == before


def test_a_pool_of_format_1_generates_and_does_so_alike_once_it_is_of_format_2(
    old: Path, embedder: Any, tiny: Any
) -> None:
    def answers() -> list[Any]:
        router = HiLoRA.from_pretrained(
            tiny.model("llama"), old, tokenizer=tiny.tokenizer(), embedder=embedder, gamma=0.1
        )
        prompts = [text for task in tiny.tasks for text in tiny.texts(task, 1, 5)]
        return [(answer.text, answer.rocs) for answer in router.generate(prompts, max_new_tokens=4)]

    before = answers()
    Pool.open(old).enable("gamma", False)
    assert read(old)["format"] == 2
    assert answers() == before


CHANGES: dict[str, Callable[[Pool], Any]] = {
    "enable": lambda pool: pool.enable("gamma"),
    "remove": lambda pool: pool.remove("gamma"),
    "tune": lambda pool: pool.tune(always=True),
    "prune": lambda pool: pool.prune(),
}


@pytest.mark.usefixtures("quick_tuning")
@pytest.mark.parametrize("change", CHANGES)
def test_the_first_change_makes_format_2_and_keeps_the_manifest_of_format_1(
    change: str, old: Path, embedder: Any, tiny: Any
) -> None:
    before = contents(old)
    CHANGES[change](Pool.open(old))
    after = contents(old)
    assert after[COPY] == before["pool.json"]
    now, then = read(old), json.loads(before["pool.json"])
    assert (now["format"], now["version"]) == (2, then["version"] + 1)
    assert now["embedder"] == then["embedder"]
    for name, line in lines(now).items():
        assert line == lines(then)[name] | {"enabled": line["enabled"]}
    assert {name: after[name] for name in before if name != "pool.json"} == {
        name: content for name, content in before.items() if name != "pool.json"
    }
    if change in ("prune", "tune"):
        assert_routes_as_then(Pool.open(old), embedder, tiny)
    Pool.open(old).enable("alpha", False)  # later changes leave the copy alone
    assert contents(old)[COPY] == before["pool.json"]


def test_the_page_shows_what_happens_to_a_pool_of_format_1(old: Path, tmp_path: Path) -> None:
    """Every command of the passage is run, and says what the page says."""
    page = (ROOT / "docs" / "pools.md").read_text()
    (shown,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    old.rename(tmp_path / "pool")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hilora").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hilora "$@"\n')
    (tmp_path / "bin" / "hilora").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = ""
    for command in re.findall(r"^\$ (.*)$", shown, re.MULTILINE):
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        said += f"$ {command}\n{done.stdout}"
    assert said == shown
    assert "gamma" in (tmp_path / "listed.txt").read_text()


def test_a_pool_goes_back_to_format_1_by_its_copy(old: Path, embedder: Any, tiny: Any, older: Any) -> None:
    before = contents(old)
    Pool.open(old).enable("gamma")
    (old / COPY).replace(old / "pool.json")
    assert contents(old) == before
    assert older.parse_manifest(old, older.read_manifest(old))["format"] == 1
    assert_routes_as_then(Pool.open(old), embedder, tiny)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_kill_9_while_the_format_changes_leaves_the_old_or_the_new_state(at: int, after: bool, old: Path) -> None:
    before, real = contents(old), os.replace
    seen = 0

    def killing(source: Any, target: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:
            os.replace = killing
            Pool.open(old).enable("gamma")
        finally:
            os._exit(3)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    opened, is_new = Pool.open(old), (at, after) == (2, True)
    assert opened.entries[opened.index("gamma")].enabled == is_new
    assert (old / "pool.json").read_bytes() == before["pool.json"] or is_new
    if (old / COPY).exists():
        assert (old / COPY).read_bytes() == before["pool.json"]
    assert (old / COPY).exists() or not is_new
    opened.enable("alpha", False)  # and goes on
    opened.prune()
    assert (old / COPY).read_bytes() == before["pool.json"]
    assert not list(old.rglob(".partial-*"))
    assert not [problem for _, problem in Pool.open(old).check() if problem]


def test_a_copy_that_cannot_be_kept_leaves_format_1(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = contents(old), store.write_whole

    def refuse(path: Path, content: bytes) -> None:
        if path.name == COPY:
            raise OSError(28, "No space left on device")
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_whole", refuse)
        with pytest.raises(PoolError, match="free some"):
            Pool.open(old).enable("gamma")
    assert contents(old) == before


# --- newer pools ------------------------------------------------------------------------------------------


def test_an_older_hilora_is_told_that_the_pool_is_newer_and_does_not_write(old: Path, older: Any) -> None:
    held = older.read_manifest(old)
    Pool.open(old).enable("gamma")
    text = older.read_manifest(old)
    assert text != held  # so that one that has the pool open reads it again before it writes
    with pytest.raises(
        MismatchError, match=r"newer hilora \(format 2, this version reads 1\).*pip install --upgrade"
    ):
        older.parse_manifest(old, text)


def test_a_new_pool_tells_an_older_hilora_likewise(tmp_path: Path, old: Path, older: Any) -> None:
    pool = Pool.create(tmp_path / "new", Pool.open(old).base, Pool.open(old).embedder)
    with pytest.raises(MismatchError, match="newer"):
        older.parse_manifest(pool.path, older.read_manifest(pool.path))


@pytest.mark.parametrize("content", [{"format": 3}, {"format": 3, "needs": 7, "adapters": {"a": "laid out anew"}}])
def test_a_pool_of_format_3_is_refused_with_the_remedy_and_left_alone(content: dict[str, Any], old: Path) -> None:
    pool = Pool.open(old)
    write(old, content)
    before = contents(old)
    for use in (lambda: Pool.open(old), pool.reload, lambda: pool.enable("gamma"), lambda: pool.remove("gamma")):
        with pytest.raises(MismatchError) as caught:
            use()
        assert "format 3, this version reads 2" in str(caught.value)
        assert "pip install --upgrade hilora" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(old) == before


def test_a_pool_that_needs_what_this_version_does_not_know_is_refused(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(old, lambda found: found.update(format=2, needs=["tenants", "known"]))
    monkeypatch.setattr(store, "ABILITIES", frozenset({"known"}))
    with pytest.raises(MismatchError, match=r"newer hilora \(it needs tenants, unknown.*pip install --upgrade"):
        Pool.open(old)
    monkeypatch.setattr(store, "ABILITIES", frozenset({"known", "tenants"}))
    Pool.open(old).enable("gamma")
    assert read(old)["needs"] == ["tenants", "known"]


# --- fields that this version does not know ------------------------------------------------------------------


def newer(found: dict[str, Any]) -> None:
    """What a later version might write into a pool of format 2."""
    found.update(format=2, served={"since": "2027", "by": ["a", 1, 1.0, True, None]}, note="of the pool")
    found["embedder"]["quantised"] = {"bits": 8}
    found["calibration"]["temperature"] = 1.5
    for line in found["adapters"]:
        if line["name"] != "delta":
            line.update(EXTRA)


@pytest.mark.usefixtures("quick_tuning")
@pytest.mark.parametrize("change", CHANGES)
def test_unknown_fields_of_pool_and_adapters_outlive_a_change(change: str, old: Path) -> None:
    then = read(edited(old, newer))
    pool = Pool.open(old)
    assert pool.extra == {"served": then["served"], "note": "of the pool"}
    CHANGES[change](pool)
    for view in (pool, Pool.open(old)):
        assert view.extra == {"served": then["served"], "note": "of the pool"}
        for entry in view.entries:
            assert entry.extra == ({} if entry.name == "delta" else EXTRA)
    now = read(old)
    assert (now["served"], now["note"], now["embedder"]) == (then["served"], then["note"], then["embedder"])
    assert repr(now["served"]) == repr(then["served"])  # 1, 1.0 and true are three things
    if change != "tune":
        assert now["calibration"] == then["calibration"]
    for name, line in lines(now).items():
        assert repr(line) == repr(lines(then)[name] | {"enabled": line["enabled"]})


def test_adapters_that_differ_only_in_unknown_fields_are_told_apart(old: Path) -> None:
    values: list[Any] = [1, True, 1.0, "1", [1], {"x": 1}, None, 0, False]

    def alike(found: dict[str, Any]) -> None:
        found["format"] = 2
        found["adapters"] = [found["adapters"][0] for _ in values]
        found["adapters"] = [one | {"odd": value} for one, value in zip(found["adapters"], values, strict=True)]

    edited(old, alike)
    pool = Pool.open(old)
    store.write_manifest(old, {"format": 2}, pool.entries)
    assert repr([line["odd"] for line in read(old)["adapters"]]) == repr(values)
    pool.entries[0].extra["odd"] = "changed in place"  # type: ignore[index]
    store.write_manifest(old, {"format": 2}, pool.entries)
    assert read(old)["adapters"][0]["odd"] == "changed in place"


@pytest.fixture
def add(tmp_path: Path, tiny: Any, embedder: Any) -> Callable[..., Entry]:
    """Put an adapter into the pool of format 1."""
    folder = tiny.adapter(
        tmp_path / "alpha", dict(list(tiny.sites(tiny.model("llama"), "llama").items())[:2]), rank=2
    )

    def put(pool: Pool, name: str, **options: Any) -> Entry:
        return pool.add(name, folder, tiny.texts("alpha", 8), embedder, **options)

    return put


def test_another_content_of_a_name_inherits_what_is_said_of_the_name(old: Path, add: Callable[..., Entry]) -> None:
    pool = Pool.open(edited(old, newer))
    of_name = {
        key: value for key, value in EXTRA.items() if key not in ("release", "template", "upload", "statistics")
    }
    assert set(manifest.OF_CONTENT) == EXTRA.keys() - of_name.keys()
    assert add(pool, "alpha", replace=True).extra == of_name
    assert add(pool, "new").extra == {}
    opened = Pool.open(old)
    assert opened.entries[opened.index("alpha")].extra == of_name
    with pytest.raises(InputError, match="has an adapter"):
        add(pool, "beta")


@pytest.mark.usefixtures("quick_tuning")
def test_statistics_end_with_the_samples_that_they_are_of(old: Path, tiny: Any, embedder: Any) -> None:
    pool = Pool.open(edited(old, newer))
    texts = {name: tiny.texts(name, 6) for name in pool.names}
    pool.reembed(texts, EmbedderInfo("other", embedder.dim, "embed", "1"), lambda batch: -embedder(batch))
    entry = Pool.open(old).entries[pool.index("alpha")]
    assert entry.extra == {key: value for key, value in EXTRA.items() if key != "statistics"}
    assert read(old)["embedder"] == {"name": "other", "dim": embedder.dim, "instruction": "embed", "fingerprint": "1"}


def test_a_base_with_fields_of_a_newer_version_is_read_and_kept(old: Path) -> None:
    want, path = Pool.open(old).base, old / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sketch_by": {"method": "rows", "of": [1, 2]}}))
    before = path.read_bytes()
    pool = Pool.open(old)
    assert pool.base == want
    pool.enable("gamma")
    assert path.read_bytes() == before


# --- damage ------------------------------------------------------------------------------------------------

LINE = [field for field in vars(Pool.open(FORMAT1 / "pool").entries[0]) if field not in ("origin", "extra")]


@pytest.mark.parametrize("lost", LINE)
@pytest.mark.parametrize("number", [1, 2])
def test_an_adapter_that_lacks_a_field_is_damaged_whatever_else_it_says(lost: str, number: int, old: Path) -> None:
    def lose(found: dict[str, Any]) -> None:
        found["format"] = number
        found["adapters"][1].update(EXTRA)
        del found["adapters"][1][lost]

    edited(old, lose)
    with pytest.raises(PoolError, match=r"damaged.*Restore it from a copy"):
        Pool.open(old)


@pytest.mark.parametrize("lost", ["format", "version", "embedder", "ridge", "tuned_on", "adapters"])
def test_a_manifest_that_lacks_a_field_is_damaged_whatever_else_it_says(lost: str, old: Path) -> None:
    edited(old, newer)
    edited(old, lambda found: found.pop(lost))
    with pytest.raises(PoolError, match="Restore it from a copy") as caught:
        Pool.open(old)
    assert lost in str(caught.value)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a tenant that is a number": lambda found: found["adapters"][0].update(tenant=5),
    "statistics that are a list": lambda found: found["adapters"][0].update(statistics=[1]),
    "a note that is null": lambda found: found["adapters"][0].update(note=None),
    "an adapter that is a list": lambda found: found.update(adapters=[list(found["adapters"][0])]),
    "an adapter that is a text": lambda found: found.update(adapters=["alpha"]),
    "needs that are a text": lambda found: found.update(needs="tenants"),
    "needs that are numbers": lambda found: found.update(needs=[1]),
    "an embedder that is a text": lambda found: found.update(embedder="fake"),
    "an embedder in no place": lambda found: found["embedder"].update(at=[]),
    "an embedder in a text": lambda found: found["embedder"].update(at="here"),
    "a format that is true": lambda found: found.update(format=True),
    "a format that is a text": lambda found: found.update(format="2"),
    "a format between two": lambda found: found.update(format=1.5),
    "format 0": lambda found: found.update(format=0),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_field_of_a_wrong_type_is_refused_in_one_line(how: str, old: Path) -> None:
    edited(old, lambda found: found.update(format=2))
    edited(old, WRONG[how])
    with pytest.raises(PoolError, match="Restore it from a copy") as caught:
        Pool.open(old)
    assert "\n" not in str(caught.value)
    assert str(old / "pool.json") in str(caught.value)


@pytest.mark.parametrize("raw", ["[]", '"tiny"', '{"at": ["x"]}', '{"at": 3}'])
def test_a_base_that_is_none_is_refused(raw: str, old: Path) -> None:
    (old / "base.json").write_text(raw)
    with pytest.raises(PoolError, match=r"base\.json.*Restore it from a copy"):
        _ = Pool.open(old).base


# --- size --------------------------------------------------------------------------------------------------


def test_the_manifest_has_a_line_for_each_adapter(old: Path) -> None:
    pool = Pool.open(edited(old, newer))
    pool.enable("gamma")
    text = (old / "pool.json").read_text().split("\n")
    assert [json.loads(line.rstrip(","))["name"] for line in text[1:-2]] == pool.names
    assert [text[-2], text[-1]] == ["]}", ""]


def test_a_change_of_one_adapter_writes_the_lines_of_the_others_as_they_were(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a change of a large pool costs: each line is made once, also where it has fields that nobody knows."""
    count = 3000

    def many(found: dict[str, Any]) -> None:
        newer(found)
        one = next(line for line in found["adapters"] if line["name"] == "alpha")
        found["adapters"] = [one | {"name": f"a{i}", "hash": f"{i:064x}"} for i in range(count)]

    pool = Pool.open(edited(old, many))
    pool.enable("a7", False)
    made = store._line.cache_info().misses
    start = time.perf_counter()
    pool.enable("a8", False)
    took = time.perf_counter() - start
    assert store._line.cache_info().misses == made + 1
    assert [entry.name for entry in Pool.open(old).entries if not entry.enabled] == ["a7", "a8"]
    assert took < 5
