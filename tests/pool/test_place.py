"""Laws of where a pool's models lie: it works from any working folder, and after a move."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hilora import HiLoRA
from hilora.base.embed import DEFAULT_EMBEDDER, Embedder, EmbedderInfo, describe_embedder
from hilora.base.fingerprint import BaseInfo, describe_base
from hilora.errors import MismatchError, ModelError
from hilora.pool import Pool
from hilora.pool.place import read_base, read_embedder, write_base, write_embedder


@pytest.fixture(scope="module")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and a tiny embedder."""
    home = tmp_path_factory.mktemp("models")
    tiny.model("llama").float().save_pretrained(home / "base")
    tiny.tokenizer().save_pretrained(home / "base")
    tiny.bert(home / "bert")
    return home


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, models: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A project with a pool and models that are given by relative paths, made from within; then one is elsewhere."""

    def made(pool: str = "pool", models_at: str = "models", here: str = ".") -> Path:
        project = tmp_path / "project"
        shutil.copytree(models, project / models_at, dirs_exist_ok=True)
        (project / here).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(project / here)
        given = Path(os.path.relpath(project / models_at, project / here))
        embedder = Embedder(str(given / "bert"))
        opened = Pool.create(
            os.path.relpath(project / pool, project / here),
            describe_base(str(given / "base")),
            describe_embedder(embedder),
        )
        sites = tiny.sites(tiny.model("llama"), "llama")
        for seed, task in enumerate(("alpha", "beta")):
            folder = tiny.adapter(tmp_path / task, sites, seed=seed, base_model_name_or_path="somewhere/base")
            opened.add(task, folder, tiny.texts(task, 6), embedder)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return project

    return made


def answers(pool: Path, tiny: Any) -> list[Any]:
    """What a pool's own base and embedder answer."""
    router = HiLoRA.from_pretrained(pool=pool, method="hilora-gs", dtype="fp32", device_map="cpu")
    prompts = [text for task in ("alpha", "beta") for text in tiny.texts(task, 2, 9)]
    return [(answer.text, answer.adapters) for answer in router.generate(prompts, max_new_tokens=4)]


def places(pool: Path) -> dict[str, list[str]]:
    """Where a pool says that its models lie."""
    base, manifest = (json.loads((pool / name).read_text()) for name in ("base.json", "pool.json"))
    return {"base": base["at"], "embedder": manifest["embedder"]["at"]}


# --- any working folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "near"),
    [
        ({}, "../models"),
        ({"pool": "pools/one", "models_at": "pools/models"}, "../models"),
        ({"models_at": "pool/models"}, "models"),
        ({"models_at": "deep/er/models", "here": "deep"}, "../deep/er/models"),
    ],
    ids=["beside", "beside below", "inside", "from a subfolder"],
)
def test_a_pool_works_from_any_working_folder(
    layout: dict[str, str], near: str, make: Make, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(**layout)
    pool, folder = project / layout.get("pool", "pool"), project / layout.get("models_at", "models")
    for name, at in zip(("base", "bert"), places(pool).values(), strict=True):
        assert at == [f"{near}/{name}"] + ([] if near == "models" else [str(folder / name)])
    opened = Pool.open(pool)
    assert (opened.base.name, opened.embedder.name) == (str(folder / "base"), str(folder / "bert"))
    want = answers(pool, tiny)
    assert all(used for _, used in want)
    for here in (pool, project, Path("/")):
        monkeypatch.chdir(here)
        assert answers(Path(os.path.relpath(pool, here)), tiny) == want


def test_a_pool_that_was_opened_by_a_relative_path_goes_on_working_elsewhere(
    make: Make, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make()
    monkeypatch.chdir(project)
    opened = Pool.open("pool")
    monkeypatch.chdir("/")
    assert opened.base.name == str(project / "models" / "base")
    assert len(opened.samples()) == 2
    opened.enable("alpha", False)
    assert not Pool.open(project / "pool").entries[opened.index("alpha")].enabled


def test_a_pool_may_be_added_to_from_anywhere_by_any_path_of_its_embedder(
    make: Make, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make()
    (tmp_path / "link").symlink_to(project / "models")
    for here, given in ((project, "models/bert"), (project, "./models/../models/bert/"), (tmp_path, "link/bert")):
        monkeypatch.chdir(here)
        embedder = Embedder(given)
        pool = Pool.open(project / "pool")
        pool.embedder.check(describe_embedder(embedder), pool.path)
        pool.add(f"a{len(pool)}", tmp_path / "alpha", tiny.texts("alpha", 6), embedder)
    assert len(Pool.open(project / "pool")) == 5


def test_another_embedder_is_refused_by_its_weights_wherever_it_lies(make: Make, tmp_path: Path) -> None:
    project = make()
    pool = Pool.open(project / "pool")
    shutil.copytree(project / "models" / "bert", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    weights = {key: tensor.flip(0) for key, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    found = describe_embedder(Embedder(str(tmp_path / "other")))
    with pytest.raises(MismatchError, match="hilora pool reembed"):
        pool.embedder.check(found, pool.path)
    shutil.rmtree(project / "models")
    with pytest.raises(MismatchError, match="hilora pool reembed"):
        Pool.open(pool.path).embedder.check(found, pool.path)


def test_an_embedder_that_has_moved_may_be_given_by_its_new_path(make: Make, tmp_path: Path) -> None:
    project = make()
    (project / "models" / "bert").rename(tmp_path / "moved")
    pool = Pool.open(project / "pool")
    with pytest.raises(ModelError, match="bert"):
        pool.embedder.load(pool.path)
    assert pool.embedder.load(pool.path, name=str(tmp_path / "moved")).name == str(tmp_path / "moved")


@pytest.mark.usefixtures("quick_tuning")
def test_an_embedder_of_reembedding_is_found_from_anywhere_too(
    make: Make, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make()
    tiny.bert(project / "models" / "cls", "cls")
    monkeypatch.chdir(project / "models")
    embedder, pool = Embedder("cls"), Pool.open(project / "pool")
    pool.reembed({name: tiny.texts(name, 6) for name in pool.names}, describe_embedder(embedder), embedder)
    monkeypatch.chdir("/")
    for view in (pool, Pool.open(project / "pool")):
        assert view.embedder.name == str(project / "models" / "cls")
    pool.embedder.load(pool.path)
    assert len(answers(project / "pool", tiny)) == 4


# --- moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "beside"])
def test_a_pool_moves_with_its_models(inside: bool, make: Make, tiny: Any, tmp_path: Path) -> None:
    project = make(models_at="pool/models" if inside else "models")
    want = answers(project / "pool", tiny)
    there = tmp_path / "far" / "away"
    there.parent.mkdir()
    if inside:
        (project / "pool").rename(there)
    else:
        project.rename(there)
    pool = there if inside else there / "pool"
    assert not (project / "models").exists()
    opened = Pool.open(pool)
    assert Path(opened.base.name).is_relative_to(there)
    assert Path(opened.embedder.name).is_relative_to(there)
    assert answers(pool, tiny) == want
    opened.enable("alpha", False)  # a change keeps where they lie
    opened.enable("alpha")
    assert answers(pool, tiny) == want


def test_a_pool_moves_without_its_models(make: Make, tiny: Any, tmp_path: Path) -> None:
    project = make()
    want = answers(project / "pool", tiny)
    (tmp_path / "far" / "away").mkdir(parents=True)
    there = (project / "pool").rename(tmp_path / "far" / "away" / "pool")
    assert Pool.open(there).base.name == str(project / "models" / "base")
    assert answers(there, tiny) == want


def test_a_copy_of_a_project_uses_its_own_models(make: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(make(), tmp_path / "copy"))
    opened = Pool.open(copy / "pool")
    assert opened.base.name == str(copy / "models" / "base")
    assert opened.embedder.name == str(copy / "models" / "bert")


def test_a_pool_behind_a_link_finds_its_models(make: Make, tiny: Any, tmp_path: Path) -> None:
    project = make()
    want = answers(project / "pool", tiny)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link").symlink_to(project / "pool")
    assert answers(tmp_path / "far" / "link", tiny) == want


def test_models_that_are_gone_are_said_to_be_where_they_were_looked_for(make: Make, tmp_path: Path) -> None:
    there = make().rename(tmp_path / "there")
    shutil.rmtree(there / "models")
    with pytest.raises(ModelError, match=str(there / "models" / "base")) as caught:
        HiLoRA.from_pretrained(pool=there / "pool")
    assert "\n" not in str(caught.value)


# --- what is recorded ---------------------------------------------------------------------------------------------


def base_called(name: str) -> BaseInfo:
    return BaseInfo(name, "llama", "plain", {"a.b": (2, 3)}, {})


def embedder_called(name: str) -> EmbedderInfo:
    return EmbedderInfo(name, 3, "", "1")


@pytest.mark.parametrize("name", ["smollm2-135m", DEFAULT_EMBEDDER, "BAAI/bge-small-en-v1.5", "tiny", "", "a" * 40])
def test_names_stay_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for known in ("smollm2-135m", DEFAULT_EMBEDDER):  # these mean what is embedded, whatever folder there is
        (tmp_path / known).mkdir()
        (tmp_path / known / "config.json").write_text("{}")
    (tmp_path / "tiny").mkdir()  # no model
    base, embedder = base_called(name), embedder_called(name)
    if name != DEFAULT_EMBEDDER:
        assert write_base(base, tmp_path / "pool") == json.loads(base.to_json())
    if name != "smollm2-135m":
        assert write_embedder(embedder, tmp_path / "pool") == vars(embedder)
    monkeypatch.chdir("/")
    assert read_base(write_base(base, tmp_path / "pool"), tmp_path / "pool") == base
    assert read_embedder(write_embedder(embedder, tmp_path / "pool"), tmp_path / "pool") == embedder


@pytest.mark.parametrize("given", [".", "..", "../base", "../../project/base", "{here}/../base", "in/../"])
def test_every_way_to_name_a_folder_finds_it(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project" / "base"
    (folder / "in").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    here = folder / "in" if given == ".." else folder
    monkeypatch.chdir(here)
    raw = write_base(
        base_called(given.format(here=here)), Path("../../project/pool" if here == folder else "../../pool")
    )
    assert raw["at"] == ["../base", str(folder)]
    assert read_base(raw, tmp_path / "project" / "pool").name == str(folder)
    read_base(raw, tmp_path / "project" / "pool").check_adapter("a", "made/of/base")


def test_a_folder_far_from_the_pool_is_recorded_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far" / "base").mkdir(parents=True)
    (tmp_path / "far" / "base" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "far")
    raw = write_base(base_called("base"), tmp_path / "work" / "pool")
    assert raw["at"] == [str(tmp_path / "far" / "base")]
    monkeypatch.chdir("/")
    assert read_base(raw, tmp_path / "moved").name == str(tmp_path / "far" / "base")


def test_a_link_to_a_model_is_recorded_as_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.json").write_text("{}")
    (tmp_path / "current").symlink_to("v1")
    monkeypatch.chdir(tmp_path)
    raw = write_base(base_called("current"), Path("pool"))
    assert raw["at"] == ["../current", str(tmp_path / "current")]


def test_an_older_pool_with_a_relative_path_works_from_where_it_worked(
    make: Make, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Format 1 recorded what was given; no change of the pool makes it something else."""
    project = make()
    pool = project / "pool"
    base, manifest = (json.loads((pool / name).read_text()) for name in ("base.json", "pool.json"))
    del base["at"], manifest["embedder"]["at"], manifest["needs"]
    assert (base["name"], manifest["embedder"]["name"]) == ("models/base", "models/bert")
    (pool / "base.json").write_text(json.dumps(base))
    (pool / "pool.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ModelError):
        answers(pool, tiny)
    monkeypatch.chdir(project)
    want = answers(pool, tiny)
    opened = Pool.open("pool")
    opened.enable("alpha", False)
    opened.enable("alpha")
    assert json.loads((pool / "pool.json").read_text())["format"] == 2
    assert (Pool.open(pool).base.name, Pool.open(pool).embedder.name) == ("models/base", "models/bert")
    assert answers(pool, tiny) == want
    opened.embedder.check(describe_embedder(Embedder(str(project / "models" / "bert"))), pool)
