"""Laws of what commands write: a bad place is told before anything is loaded, and no two runs share one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilora.base.outputs import alone
from hilora.cli import main
from hilora.cli.app import app
from hilora.pool.trained import trained_path

Commands = dict[str, list[Any]]


@pytest.fixture
def pool(shared_pool: Any) -> Path:
    """No test here changes it."""
    return Path(shared_pool("llama")[1].path)


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command may load a model."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    models = ("load_base", "load_config")
    for place in (*(f"hilora.base.models.{name}" for name in models), "hilora.engine.generate.load_base"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr("hilora.base.embed.Embedder.__init__", refuse)
    monkeypatch.setattr("hilora.base.encoders.load_encoder", refuse)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[Any]], str]:
    """The one line of a command that is refused."""

    def call(command: list[Any]) -> str:
        monkeypatch.setattr(sys, "argv", ["hilora", *map(str, command)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert err.startswith("hilora: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture
def data(tmp_path: Path, tiny: Any) -> Path:
    """Texts of two tasks in every shape that a command asks for."""
    rows = [{"task": task, "inputs": text, "targets": "a"} for task in tiny.tasks for text in tiny.texts(task, 6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "tasks").mkdir()
    for task in tiny.tasks:
        (tmp_path / "tasks" / f"{task}.jsonl").write_text(lines)
    return tmp_path


def writing(data: Path, pool: Path, file: Path, folder: Path) -> Commands:
    """Every command that works long and then writes, with where it is to write."""
    rows, tasks = data / "rows.jsonl", data / "tasks"
    return {
        "generate": ["generate", "hello", "--pool", pool, "--out", file],
        "evaluate tasks": ["evaluate", "tasks", "--pool", pool, "--data", tasks, "--json", file],
        "evaluate routing": ["evaluate", "routing", "--samples", rows, "--test", rows, "--json", file],
        "explain": ["explain", "hello", "--pool", pool, "--out", file],
        "bench": ["bench", "--pool", pool, "--json", file],
        "bench plot": ["bench", "--pool", pool, "--plot", file.with_suffix(".png")],
        "train lora": ["train", "lora", rows, "--out", folder],
        "train combine": ["train", "combine", rows, "--pool", pool, "--out", folder],
        "train retriever": ["train", "retriever", "--samples", rows, "--out", folder],
        "figures activation": ["figures", "activation", "--prompt", "hello", "--pool", pool, "--out", folder],
        "figures weights": ["figures", "weights", "--test", rows, "--pool", pool, "--out", folder],
        "figures rocs": ["figures", "rocs", "--sites", "q_proj", "--pool", pool, "--out", folder],
        "figures similarity": ["figures", "similarity", "--test", rows, "--pool", pool, "--out", folder],
        "figures selection": ["figures", "selection", "--rows", rows, "--out", folder],
        "figures retrieval": ["figures", "retrieval", "--json", rows, "--out", folder],
        "pool add": ["pool", "add", "new", data / "adapter", "--pool", folder],
        "pool add-all": ["pool", "add-all", data, "--pool", folder],
    }


ALL = list(writing(Path(), Path(), Path("a"), Path()))


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("command", ALL)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    command: str, data: Path, pool: Path, fails: Any, tiny: Any
) -> None:
    tiny.adapter(data / "adapter", {"model.layers.0.self_attn.q_proj": (16, 16)})
    (data / "adapter" / "samples.jsonl").write_text('"a"\n"b"\n"c"\n')
    (data / "file").write_text("")
    inside = data / "file" / "in"
    said = fails(writing(data, pool, inside, inside)[command])
    assert f"{data / 'file'} is none" in said
    assert (data / "file").read_text() == ""


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("command", ["generate", "evaluate tasks", "evaluate routing", "explain", "bench"])
def test_a_folder_where_a_file_is_to_be_is_refused_before_anything_is_loaded(
    command: str, data: Path, pool: Path, fails: Any
) -> None:
    assert "is a folder" in fails(writing(data, pool, data / "tasks", data)[command])


PARTS = {
    "router": ["router"],
    "other": ["router", "--name", "other"],
    "moe-soft": ["moe", "--kind", "moe-soft"],
    "phatgoose": ["phatgoose"],
    "lorahub": ["lorahub"],
}


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_another_run_trains_is_refused_before_anything_is_loaded(
    kind: str, data: Path, pool: Path, fails: Any
) -> None:
    with alone(trained_path(pool, kind)):
        said = fails(["train", *PARTS[kind], "--pool", pool, "--data", data / "tasks"])
    assert "Another run is writing" in said


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("name", "words"), [("../x", "lower-case letters"), ("", "lower-case letters"), ("smear", "another method's")]
)
def test_a_bad_name_of_a_router_is_refused_before_anything_is_loaded(
    name: str, words: str, data: Path, pool: Path, fails: Any
) -> None:
    assert words in fails(["train", "router", "--name", name, "--pool", pool, "--data", data / "tasks"])


@pytest.mark.usefixtures("nothing_loaded")
def test_a_bad_name_of_an_adapter_is_refused_before_it_is_fetched(tmp_path: Path, fails: Any) -> None:
    said = fails(["pool", "add", "bad/name", "some/repository", "--pool", tmp_path / "pool"])
    assert "is no adapter name" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("command", ["generate", "evaluate tasks", "train lora", "train combine", "train retriever"])
def test_what_another_run_writes_is_refused_before_anything_is_loaded(
    command: str, data: Path, pool: Path, fails: Any
) -> None:
    file, folder = data / "out.jsonl", data / "made"
    with alone(file), alone(folder):
        assert "Another run is writing" in fails(writing(data, pool, file, folder)[command])


def test_answers_that_another_run_began_meanwhile_are_not_gone_on_with(
    data: Path, pool: Path, shared_pool: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs found no file; the second is refused while the first writes, and when it has written."""
    out, command = data / "out.jsonl", ["generate", "aaa", "--pool", str(pool), "--max-new-tokens", "2", "--out"]
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **_: embedder)

    def late(*_: Any, **__: Any) -> Any:
        first = CliRunner().invoke(app, [*command, str(out)])
        assert first.exit_code == 0, first.output
        return shared_pool("llama")[0], tokenizer

    def load(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr("hilora.engine.generate.load_base", lambda *_, **__: (shared_pool("llama")[0], tokenizer))
        return late()

    monkeypatch.setattr("hilora.engine.generate.load_base", load)
    second = CliRunner().invoke(app, [*command, str(out)])
    assert "is there" in str(second.exception)
    assert len(out.read_text().splitlines()) == 2

    def holding(*_: Any, **__: Any) -> Any:
        held.__enter__()
        return shared_pool("llama")[0], tokenizer

    held = alone(data / "other.jsonl")
    monkeypatch.setattr("hilora.engine.generate.load_base", holding)
    refused = CliRunner().invoke(app, [*command, str(data / "other.jsonl")])
    held.__exit__(None, None, None)
    assert "Another run is writing" in str(refused.exception)
    assert not (data / "other.jsonl").exists()
