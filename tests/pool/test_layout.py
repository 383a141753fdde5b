"""Laws of adapters whose names or whole tensors have to be read with the base: what PEFT would add, or why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from hilora.base.fingerprint import BaseInfo, describe_base
from hilora.errors import AdapterError
from hilora.pool.peft import read_adapter
from hilora.types import Adapter

HEAD, EMBEDDING = "base_model.model.lm_head.base_layer.weight", "base_model.model.model.embed_tokens.weight"
SMALL: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip


def save_base(folder: Path, config: Any, tokenizer: Any, cls: Any = None, dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(5)
    model = cls(config) if cls else tf.AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def read(folder: Path, base: BaseInfo) -> Adapter:
    return read_adapter(folder, name="a", sites=base.sites, base=base)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file)


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- copies of the base's own weights -----------------------------------------------------------------

LLAMAS = {"untied": (False, torch.float32), "tied": (True, torch.float32), "bf16": (False, torch.bfloat16)}


@pytest.fixture(scope="module")
def llamas(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseInfo]:
    home = tmp_path_factory.mktemp("llamas")
    return {
        kind: describe_base(
            save_base(home / kind, tf.LlamaConfig(**SMALL, tie_word_embeddings=tied), tiny.tokenizer(), dtype=dtype)
        )
        for kind, (tied, dtype) in LLAMAS.items()
    }


def weights(base: BaseInfo) -> Tensor:
    """The output layer's, as it is loaded."""
    return load_file(Path(base.name) / "model.safetensors").get("lm_head.weight", embedding(base))


def embedding(base: BaseInfo) -> Tensor:
    return load_file(Path(base.name) / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("kind", LLAMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_of_the_bases_own_weights_change_nothing(
    kind: str, dtype: torch.dtype, llamas: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    base = llamas[kind]
    folder = tiny.adapter(tmp_path, {"lm_head": base.sites["lm_head"]})
    alone = read(folder, base)
    edit(folder, lambda t: t | {HEAD: weights(base).to(dtype), EMBEDDING: embedding(base).to(dtype)})
    assert read(folder, base).hash == alone.hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.index_fill(0, torch.tensor([7]), 0.5), "differ from this base model's"),
        (lambda w: torch.cat([w, w[:1]]), "differ from this base model's"),
        (lambda w: w + 1e-3 * w.abs().max(), "differ from this base model's"),
        (lambda w: w.to(torch.int8), "differ from this base model's"),
    ],
    ids=["one row", "longer vocabulary", "a little everywhere", "other kind"],
)
def test_whole_weights_that_differ_from_the_bases_are_refused(
    change: Callable[[Tensor], Tensor], words: str, llamas: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    base = llamas["untied"]
    folder = tiny.adapter(tmp_path, {"lm_head": base.sites["lm_head"]})
    edit(folder, lambda t: t | {HEAD: change(weights(base))})
    with pytest.raises(AdapterError, match=words):
        read(folder, base)


def test_whole_weights_that_cannot_be_compared_are_refused_and_that_is_said(
    llamas: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    base = llamas["untied"]
    folder = tiny.adapter(tmp_path, {"lm_head": base.sites["lm_head"]})
    edit(folder, lambda t: t | {HEAD: weights(base)})
    elsewhere = BaseInfo(str(tmp_path / "gone"), base.model_type, base.template, base.sites, base.sketch)
    with pytest.raises(AdapterError, match=r"cannot be compared .*gone.*save_embedding_layers"):
        read(folder, elsewhere)
    with pytest.raises(AdapterError, match="cannot be compared"):
        read_adapter(folder, name="a", sites=base.sites)


# --- names of another layout --------------------------------------------------------------------------

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                        "mrope_section": [1, 1, 0]},
}  # fmt: skip
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}


def gemma(folder: Path, tokenizer: Any) -> str:
    config = tf.Gemma3Config(
        text_config=SMALL, vision_config=VISION | {"patch_size": 14}, mm_tokens_per_image=4, image_token_index=5,
        boi_token_index=6, eoi_token_index=7, **ENDS,
    )  # fmt: skip
    return save_base(folder, config, tokenizer)


def qwen(folder: Path, tokenizer: Any) -> str:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    config = tf.Qwen3_5Config(text_config=SMALL | LINEAR, vision_config=vision, **ENDS)
    return save_base(folder, config, tokenizer, cls=tf.Qwen3_5ForConditionalGeneration)


# base, its prefix, prefixes under which its adapters may have been saved
LAYOUTS: dict[str, tuple[Callable[[Path, Any], str], str, list[str]]] = {
    "gemma3": (gemma, "model.language_model.layers.", ["language_model.model.layers."]),
    "qwen3.5": (qwen, "model.layers.", ["model.language_model.layers."]),
}


@pytest.fixture(scope="module")
def bases(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseInfo]:
    home = tmp_path_factory.mktemp("bases")
    return {kind: describe_base(make(home / kind, tiny.tokenizer())) for kind, (make, _, _) in LAYOUTS.items()}


def chosen(base: BaseInfo, prefix: str) -> dict[str, tuple[int, int]]:
    """The query and value layers of the text model."""
    found = {s: shape for s, shape in base.sites.items() if s.startswith(prefix) and s.endswith(("q_proj", "v_proj"))}
    assert found
    return found


SAVED = [(kind, old) for kind, (_, _, olds) in LAYOUTS.items() for old in olds]


@pytest.mark.parametrize(("kind", "old"), SAVED)
@pytest.mark.parametrize("here", [True, False], ids=["base here", "base elsewhere"])
def test_an_adapter_saved_under_another_layout_of_its_base_is_the_same_adapter(
    kind: str, old: str, here: bool, bases: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    prefix, base = LAYOUTS[kind][1], bases[kind]
    folder = tiny.adapter(tmp_path / "adapter", chosen(base, prefix))
    if not here:
        base = BaseInfo(str(tmp_path / "gone"), base.model_type, base.template, base.sites, base.sketch)
    new = read(folder, base)
    edit(folder, lambda t: {key.replace(prefix, old): value for key, value in t.items()})
    assert read(folder, base).hash == new.hash
    with pytest.raises(AdapterError, match="prefix"):
        read_adapter(folder, name="a", sites=base.sites)


def test_a_prefix_that_no_layout_had_is_named(bases: dict[str, BaseInfo], tiny: Any, tmp_path: Path) -> None:
    prefix, base = LAYOUTS["gemma3"][1], bases["gemma3"]
    folder = tiny.adapter(tmp_path, chosen(base, prefix))
    edit(folder, lambda t: {key.replace(prefix, "decoder.text.layers."): value for key, value in t.items()})
    with pytest.raises(AdapterError, match=r"under the prefix 'model\.language_model' or .*, not 'decoder\.text'"):
        read(folder, base)


def test_a_part_of_the_base_that_is_not_loaded_is_no_other_base(
    bases: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    base = bases["qwen3.5"]
    folder = tiny.adapter(tmp_path, {"model.visual.blocks.0.attn.qkv": (16, 48)}, base_model_name_or_path=base.name)
    with pytest.raises(AdapterError, match="a part of that base that is not loaded here"):
        read(folder, base)


def test_an_expert_layer_is_refused_also_where_the_base_has_the_module(tiny: Any, tmp_path: Path) -> None:
    sites = {"model.layers.0.mlp.experts.0.up_proj": (16, 24)}
    with pytest.raises(AdapterError, match="inside an expert layer"):
        read_adapter(tiny.adapter(tmp_path, sites), name="a", sites=sites)


def test_one_module_under_two_layouts_is_refused(bases: dict[str, BaseInfo], tiny: Any, tmp_path: Path) -> None:
    prefix, base = LAYOUTS["gemma3"][1], bases["gemma3"]
    folder = tiny.adapter(tmp_path, chosen(base, prefix))
    edit(folder, lambda t: t | {k.replace(prefix, "language_model.model.layers."): v.clone() for k, v in t.items()})
    with pytest.raises(AdapterError, match="twice"):
        read(folder, base)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": r"language_model\.model\..*_proj"}, None),
        ({"alpha_pattern": {r"language_model\.model\..*q_proj": 9}}, "alpha_pattern says one thing"),
        ({"alpha_pattern": {"q_proj": 9}}, None),
    ],
    ids=["targets", "pattern of old names", "pattern of both"],
)
def test_patterns_written_for_other_names_are_not_passed_over(
    fields: dict[str, Any], words: str | None, bases: dict[str, BaseInfo], tiny: Any, tmp_path: Path
) -> None:
    prefix, base = LAYOUTS["gemma3"][1], bases["gemma3"]
    folder = tiny.adapter(tmp_path, chosen(base, prefix))
    edit(folder, lambda t: {k.replace(prefix, "language_model.model.layers."): v for k, v in t.items()})
    configure(folder, **fields)
    if words is None:
        assert len(read(folder, base).factors) == len(chosen(base, prefix))
    else:
        with pytest.raises(AdapterError, match=words):
            read(folder, base)
