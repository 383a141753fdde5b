"""Laws of what tells two bases apart: weights by the names that loading gives them, else the files; or it is said."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hilora.base.fingerprint import BaseInfo, describe_base
from hilora.base.models import load_base
from hilora.errors import AdapterError, MismatchError, ModelError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4400216536\n"


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder: Path, tiny: Any, seed: int) -> Path:
    return save(folder, tiny.model("llama", torch.float32, seed), tiny.tokenizer())


def gpt2(folder: Path, tiny: Any, seed: int) -> Path:
    return save(folder, tiny.model("gpt2", torch.float32, seed), tiny.tokenizer())


def backbone(folder: Path, tiny: Any, seed: int) -> Path:
    """A checkpoint of the bare model: its names lack the first part."""
    model = tiny.model("llama", torch.float32, seed)
    save(folder, model, tiny.tokenizer())
    tensors = load_file(folder / "model.safetensors")
    save_file({key.removeprefix("model."): value for key, value in tensors.items()}, folder / "model.safetensors")
    return folder


def full(folder: Path, tiny: Any, seed: int) -> Path:
    """A model of texts and images, of which the text model alone is loaded."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                            "mrope_section": [1, 1, 0]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    config = tf.Qwen3_5Config(text_config=text, vision_config=vision, pad_token_id=0, eos_token_id=1)
    return save(folder, tf.Qwen3_5ForConditionalGeneration(config), tiny.tokenizer())


def pickled(folder: Path, tiny: Any, seed: int) -> Path:
    llama(folder, tiny, seed)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


SAMPLED = {"llama": llama, "gpt2": gpt2, "bare backbone": backbone, "text part of a full model": full}
Make = Callable[[Path, Any, int], Path]


@pytest.mark.parametrize("kind", [*SAMPLED, "pickled"])
def test_a_base_is_told_from_another_of_its_shape(
    kind: str, tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make: Make = (SAMPLED | {"pickled": pickled})[kind]
    base, other = make(tmp_path / "base", tiny, 1), make(tmp_path / "other", tiny, 2)
    info = BaseInfo.from_json(describe_base(str(base)).to_json())
    assert bool(info.sketch) == (kind in SAMPLED) == (not info.files)
    assert ("cannot be sampled" in caplog.text) == (kind not in SAMPLED)
    caplog.clear()
    info.check_model(load_base(str(base), dtype="fp32")[0], info.template)
    assert caplog.text == ""
    with pytest.raises(MismatchError, match="other weights"):
        info.check_model(load_base(str(other), dtype="fp32")[0], info.template)
    if kind in SAMPLED:
        info.check_model(load_base(str(base), dtype="bf16")[0], info.template)
        assert caplog.text == ""


def test_a_copy_of_pickled_weights_is_the_same_base_and_nothing_unpickles_it(tiny: Any, tmp_path: Path) -> None:
    base = pickled(tmp_path / "base", tiny, 1)
    (base / "pytorch_model.bin").write_bytes(b"no pickle at all")  # unpickling it would fail
    copied = Path(shutil.copytree(base, tmp_path / "copy"))
    assert describe_base(str(base)).files == describe_base(str(copied)).files != ""


@pytest.mark.parametrize("kind", [*SAMPLED, "pickled"])
def test_a_description_is_known_again_by_its_weights_else_by_its_files(kind: str, tiny: Any, tmp_path: Path) -> None:
    make: Make = (SAMPLED | {"pickled": pickled})[kind]
    base, other = make(tmp_path / "base", tiny, 1), make(tmp_path / "other", tiny, 2)
    info = describe_base(str(base))
    copied = describe_base(str(shutil.copytree(base, tmp_path / "copy")))
    assert info.is_same(copied)
    assert not info.is_same(describe_base(str(other)))
    assert not info.is_same(replace(copied, sketch={}, files=""))  # nothing left to tell it by
    assert not info.is_same(replace(copied, template="another"))
    assert not info.is_same(replace(copied, sites=dict(list(copied.sites.items())[1:])))


@pytest.fixture
def info(tiny: Any, tmp_path: Path) -> BaseInfo:
    return describe_base(str(llama(tmp_path / "base", tiny, 1)))


def test_what_cannot_be_compared_is_said(info: BaseInfo, tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.model("llama", torch.float32, 1)
    replace(info, sketch={}).check_model(model, info.template)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot check" in record.message
    assert info.name in record.message
    assert "\n" not in record.message


def test_quantised_weights_are_compared_by_the_files_that_they_came_from(
    info: BaseInfo, tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = llama(tmp_path / "other", tiny, 2)
    for folder, right in ((info.name, True), (str(other), False)):
        model, _ = load_base(folder, dtype="fp32")
        for site in info.sites:
            model.get_submodule(site).weight = torch.nn.Parameter(
                model.get_submodule(site).weight.to(torch.int8), requires_grad=False
            )
        if right:
            info.check_model(model, info.template)
        else:
            with pytest.raises(MismatchError, match="other weights"):
                info.check_model(model, info.template)
    assert caplog.text == ""


NAMES = [
    "org/Llama-Tiny", "C:/models/Llama-Tiny", "C:\\models\\Llama-Tiny", "\\\\server\\share\\llama_tiny\\",
    "./models\\llama-tiny/", "llama-tiny", "/c/hub/models--org--Llama-Tiny/snapshots/0123abcd",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_compared_by_its_last_part_on_every_system(name: str, info: BaseInfo) -> None:
    for own in NAMES:
        replace(info, name=own).check_adapter("a", name)
    for other in ("org/Llama-Tiny-2", "C:\\models\\other", "C:\\Llama-Tiny\\other"):
        with pytest.raises(AdapterError, match="trained for"):
            replace(info, name=name).check_adapter("a", other)


# --- bases that cannot be described -------------------------------------------------------------------


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def no_language_model(folder: Path) -> None:
    tf.ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        folder
    )


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def index(text: str) -> Callable[[Path], None]:
    """Weights in parts, by an index that says this."""

    def spoil(base: Path) -> None:
        (base / "model.safetensors").unlink()
        (base / "model.safetensors.index.json").write_text(text)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "weights are a pointer": (
        lambda base: (base / "model.safetensors").write_text(POINTER), "Git LFS pointer", "git lfs pull"
    ),
    "tokenizer is a pointer": (
        lambda base: (base / "tokenizer.json").write_text(POINTER), "Git LFS pointer", "git lfs pull"
    ),
    "weights are cut": (
        lambda base: (base / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be", "files"
    ),
    "no tokenizer": (no_tokenizer, "no tokenizer", "tokenizer.json"),
    "broken tokenizer": (lambda base: (base / "tokenizer.json").write_text("{"), "no tokenizer", "tokenizer.json"),
    "no language model": (no_language_model, "vit", "Choose a language model"),
    "index of absent files": (index('{"weight_map": {"a": "absent.safetensors"}}'), "cannot be", "files"),
    "broken index": (index("{"), "cannot be", "files"),
    "index of nothing": (index("[]"), "cannot be", "files"),
    "words for numbers": (lambda base: change(base / "config.json", hidden_size="big"), "base model", "config"),
    "tokenizer of no kind": (lambda base: change(base / "tokenizer.json", model={}), "no tokenizer", "tokenizer"),
    "no config": (lambda base: (base / "config.json").unlink(), "No base model", "config.json"),
    "broken config": (lambda base: (base / "config.json").write_text("{"), "No base model", "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_base_that_cannot_be_used_is_one_line_with_a_remedy(case: str, tiny: Any, tmp_path: Path) -> None:
    spoil, what, remedy = SPOILT[case]
    base = llama(tmp_path / "base", tiny, 1)
    spoil(base)
    for use in (describe_base, load_base):
        with pytest.raises(ModelError) as caught:
            use(str(base))
        message = str(caught.value)
        assert "\n" not in message
        assert what in message
        assert remedy in message
        assert str(base) in message
