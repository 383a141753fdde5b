"""Laws of loading a base: nothing that comes with it is run, and what cannot be loaded is one line with a remedy."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hilora.base.embed import Embedder
from hilora.base.embedded import shown_name
from hilora.base.fingerprint import describe_base
from hilora.base.models import load_base, load_config
from hilora.cli import main
from hilora.errors import InputError, ModelError
from hilora.train.retriever import RetrieverRecipe, train_retriever

PACKAGE = Path(__file__).parents[2] / "hilora"
LOADERS = {"from_pretrained", "from_config"}
OURS = {"HiLoRA", "PeftModel"}
"""Whose `from_pretrained` takes a model that is loaded already, or passes on to `load_base`."""


def loads(text: str) -> Iterator[ast.Call]:
    """The calls that load something by name with transformers or sentence-transformers."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "SentenceTransformer":
                yield node
            elif isinstance(called, ast.Attribute) and called.attr in LOADERS:
                owner = called.value
                if (owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")) not in OURS:
                    yield node


def forbids(call: ast.Call) -> bool:
    """Whether a call says that no code of the model is run."""
    said = [each.value for each in call.keywords if each.arg == "trust_remote_code"]
    return len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is False


def test_every_loading_call_of_the_package_forbids_code_that_comes_with_a_model() -> None:
    found = [(path, call) for path in sorted(PACKAGE.rglob("*.py")) for call in loads(path.read_text())]
    assert len(found) >= 8
    assert [f"{path.relative_to(PACKAGE)}, line {call.lineno}" for path, call in found if not forbids(call)] == []


@pytest.mark.parametrize(
    "text", ["AutoConfig.from_pretrained(p)", "auto.from_config(c, trust_remote_code=True)", "SentenceTransformer(p)"]
)
def test_a_loading_call_that_leaves_it_open_is_found(text: str) -> None:
    assert [forbids(call) for call in loads(text)] == [False]


@pytest.fixture(scope="module")
def saved(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base on disk, with its tokenizer."""
    folder: Path = tmp_path_factory.mktemp("base")
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def in_one_line(caught: pytest.ExceptionInfo[ModelError], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


TASKS = {"one": ["a", "b"], "two": ["c", "d"]}


def recipe(embedder: str) -> RetrieverRecipe:
    return RetrieverRecipe(embedder=embedder, steps=1, batch=2)


class Asked(io.StringIO):
    """Standard input that agrees to everything, and remembers that it was asked."""

    count = 0

    def readline(self, *_: Any) -> str:
        self.count += 1
        return "y\n"


PLACES = {"config": ("config.json", "AutoConfig"), "model": ("config.json", "AutoModelForCausalLM"),
          "tokenizer": ("tokenizer_config.json", "AutoTokenizer")}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_code_that_comes_with_a_base_is_neither_asked_about_nor_run(
    place: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, kind = PLACES[place]
    ref = ["mine.Mine", None] if place == "tokenizer" else "mine.Mine"
    fields: dict[str, Any] = {"auto_map": {kind: ref}, "model_type": "mine"}
    if place == "tokenizer":
        fields = {"auto_map": {kind: ref}, "tokenizer_class": "Mine"}
    change(base / file, **fields)
    if place == "tokenizer":
        (base / "tokenizer.json").unlink()
    (base / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    asked = Asked()
    monkeypatch.setattr("sys.stdin", asked)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    line = ["hilora", "pool", "add", "a", str(tmp_path), "--describe", "Does things.", "--base", str(base)]
    monkeypatch.setattr(sys, "argv", [*line, "--pool", str(tmp_path / "pool"), "--embedder", str(tmp_path / "none")])
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda *_, **__: None)
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith("hilora: ")
    for load in (describe_base, load_base):
        with pytest.raises(ModelError):
            load(str(base))
    assert asked.count == 0
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_an_embedder_is_not_run(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "embedder")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Transformer: pass\n")
    parts = json.loads((folder / "modules.json").read_text())
    parts[0]["type"] = "mine.Transformer"
    (folder / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(ModelError) as caught:
        Embedder(str(folder))
    in_one_line(caught, "mine.Transformer", "never run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("use", [Embedder, lambda name: train_retriever(TASKS, Path(name) / "out", recipe(name))])
def test_an_embedder_that_needs_code_of_its_own_is_one_line(
    use: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.bert(tmp_path / "embedder")
    change(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    asked = Asked()
    monkeypatch.setattr("sys.stdin", asked)
    with pytest.raises(ModelError) as caught:
        use(str(folder))
    in_one_line(caught, "cannot be loaded", "code of its own")
    assert asked.count == 0
    assert not (tmp_path / "ran").exists()


SPOILT_EMBEDDERS: dict[str, tuple[str, bytes]] = {
    "weights cut": ("model.safetensors", b"\xff" * 64),
    "weights a pointer": ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\nsize 99\n"),
    "tokenizer broken": ("tokenizer.json", b'{"model": {}}'),
    "config broken": ("config.json", b"{"),
}


@pytest.mark.parametrize("case", SPOILT_EMBEDDERS)
def test_an_embedder_that_cannot_be_read_is_one_line(case: str, tiny: Any, tmp_path: Path) -> None:
    folder, (file, content) = tiny.bert(tmp_path / "embedder"), SPOILT_EMBEDDERS[case]
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Embedder(str(folder))
    in_one_line(caught, str(folder))


def test_embedders_whose_weights_are_pickled_are_told_apart(tiny: Any, tmp_path: Path) -> None:
    found = set()
    for seed in (1, 2):
        folder = tiny.bert(tmp_path / str(seed))
        tensors = {name: tensor * seed for name, tensor in load_file(folder / "model.safetensors").items()}
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        found.add(Embedder(str(folder)).fingerprint)
    assert len(found) == 2


def test_half_a_character_is_refused_by_the_embedder(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Text 1 has half a character"):
        Embedder(str(tiny.bert(tmp_path / "embedder")))(["whole", "half \ud83d"])


def test_what_is_no_base_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_config(str(tmp_path))
    in_one_line(caught, "No base model", "config.json")


def test_a_name_that_others_see_does_not_tell_where_a_model_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_name(str(tmp_path / "a-base")) == "a-base"
    assert shown_name("organisation/a-base") == "organisation/a-base"
    (tmp_path / "private" / "a-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shown_name("private/a-base") == "a-base"
