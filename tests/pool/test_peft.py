"""Laws of reading PEFT folders: what PEFT itself would add, or a refusal that says why."""

import contextlib
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hilora.errors import AdapterError
from hilora.pool.patterns import Matcher
from hilora.pool.peft import content_hash, read_adapter, read_config
from hilora.types import Adapter

# PEFT asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Plain = tuple[Path, PeftModel]
Q0 = "model.layers.0.self_attn.q_proj"
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:q_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8, bos_token_id=1, eos_token_id=2)
    )


def save(
    folder: Path, *, base: Callable[[], Any] = llama, dtype: torch.dtype = torch.float32, **options: Any
) -> PeftModel:
    """A random adapter, B included, written by PEFT itself."""
    torch.manual_seed(0)
    defaults = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = get_peft_model(base(), LoraConfig(**(defaults | options)))
    model = model.to(dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def sites_of(model: PeftModel) -> dict[str, tuple[int, int]]:
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def read(folder: Path, model: PeftModel) -> Adapter:
    return read_adapter(folder, name="a", sites=sites_of(model))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors")


def shard(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    names = ["adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"]
    where = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}  # A and B of a site lie apart
    for name in names:
        save_file({key: tensors[key] for key in where if where[key] == name}, folder / name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """A plain adapter's folder, to be copied, and the model that it was saved from."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, save(folder)


def copy(plain: Plain, folder: Path) -> PeftModel:
    shutil.copytree(plain[0], folder, dirs_exist_ok=True)
    return plain[1]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"v_proj": 2, r"^model\.layers\.0\..*q_proj": 3, "q_proj": 1}},
    "alpha_pattern": {"alpha_pattern": {"layers.1.self_attn.q_proj": 20, r"layers\.\d+\.self_attn\.(v|k)_proj": 3}},
    "patterns and rslora": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 5},
    },
    "regex targets": {"target_modules": r".*\.0\.(self_attn|mlp)\.(q|up)_proj"},
    "unsloth's regex": {"target_modules": UNSLOTH},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": [Q0]},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "gpt2": {"base": gpt2, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_folded_factors_equal_pefts_delta(tmp_path: Path, option: str, sharded: bool) -> None:
    model = save(tmp_path, **OPTIONS[option])
    if sharded:
        shard(tmp_path)
    adapter = read(tmp_path, model)
    assert adapter.factors.keys() == sites_of(model).keys()
    dtype = OPTIONS[option].get("dtype", torch.float32)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for site, (down, up) in adapter.factors.items():
        layer = model.base_model.model.get_submodule(site)
        delta = layer.get_delta_weight("default").float()
        if layer.fan_in_fan_out:  # Conv1D stores (in, out)
            delta = delta.T
        assert down.dtype == up.dtype == dtype
        assert down.is_contiguous()
        assert up.is_contiguous()
        error = (up.float() @ down.float() - delta).abs().max()
        assert error <= tolerance * delta.abs().max()


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_patterns_match_whole_parts_of_names(tmp_path: Path) -> None:
    model = save(tmp_path, rank_pattern={"proj": 1, "q_proj": 2})
    ranks = {site: down.shape[0] for site, (down, _) in read(tmp_path, model).factors.items()}
    assert ranks[Q0] == 2
    assert ranks["model.layers.0.self_attn.v_proj"] == 4


def test_overlapping_patterns_follow_the_files_order_as_in_peft(tmp_path: Path) -> None:
    # PEFT sorts the patterns on saving: what was trained with alpha 20 is loaded with 3, by PEFT too.
    trained = save(tmp_path, alpha_pattern={Q0: 20, "layers.0.self_attn.q_proj": 3})
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    down, up = read(tmp_path, trained).factors[Q0]
    torch.testing.assert_close(up @ down, loaded.base_model.model.get_submodule(Q0).get_delta_weight("default"))
    assert trained.base_model.model.get_submodule(Q0).scaling["default"] == 5
    assert loaded.base_model.model.get_submodule(Q0).scaling["default"] == 0.75


def test_every_default_of_peft_is_accepted(plain: Plain, tmp_path: Path) -> None:
    copy(plain, tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert read_config(tmp_path).keys() == raw.keys()


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_keep_the_base_weights_are_accepted(plain: Plain, tmp_path: Path, init: Any) -> None:
    model = copy(plain, tmp_path)
    expected = read(tmp_path, model).hash
    change(tmp_path, init_lora_weights=init, eva_config={"rho": 2.0}, corda_config={"x": 1})
    assert read(tmp_path, model).hash == expected


def test_configs_of_old_peft_are_accepted(plain: Plain, tmp_path: Path) -> None:
    old = {
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "enable_lora": None,
        "merge_weights": False,
    }
    model = copy(plain, tmp_path)
    expected = read(tmp_path, model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(old))
    adapter = read(tmp_path, model)
    assert adapter.hash == expected.hash
    assert adapter.base_model == "tiny"


def test_keys_may_name_the_default_adapter(plain: Plain, tmp_path: Path) -> None:
    model = copy(plain, tmp_path)
    expected = read(tmp_path, model).hash

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    change_weights(tmp_path, rename)
    assert read(tmp_path, model).hash == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hash_knows_content_and_not_order(dtype: torch.dtype) -> None:
    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(2, 3, dtype=dtype), torch.ones(4, 2, dtype=dtype)

    one = {"a": pair(), "b": pair()}
    assert content_hash(one) == content_hash({"b": pair(), "a": pair()})
    assert len(content_hash(one)) == 64
    one["b"][1][3, 1] += 1
    assert content_hash(one) != content_hash({"a": pair(), "b": pair()})
    assert content_hash({"a": pair()}) != content_hash({"b": pair()})
    down, up = pair()
    assert content_hash({"a": (down, up)}) != content_hash({"a": (down.view(3, 2), up)})


def test_hash_does_not_depend_on_shards(plain: Plain, tmp_path: Path) -> None:
    model = copy(plain, tmp_path)
    expected = read(tmp_path, model).hash
    shard(tmp_path)
    assert read(tmp_path, model).hash == expected


def test_later_changes_of_the_file_do_not_reach_the_adapter(plain: Plain, tmp_path: Path) -> None:
    model = copy(plain, tmp_path)
    adapter = read(tmp_path, model)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert content_hash(adapter.factors) == adapter.hash


REFUSED_FIELDS = [
    ({"peft_type": "IA3"}, "LoRA"),
    ({"use_dora": True}, "DoRA"),
    ({"bias": "all"}, "bias"),
    ({"lora_bias": True}, "bias"),
    ({"modules_to_save": ["score"]}, "full copies"),
    ({"alora_invocation_tokens": [1]}, "aLoRA"),
    ({"target_parameters": ["experts.up"]}, "target_modules"),
    ({"layer_replication": [[0, 2]]}, "another base"),
    ({"trainable_token_indices": [1]}, "embeddings"),
    ({"use_qalora": True}, "QA-LoRA"),
    ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    ({"kasa_config": {"beta": 1}}, "KaSA"),
    ({"monteclora_config": {"x": 1}}, "MonteCLoRA"),
    ({"arrow_config": {"top_k": 2}}, "router"),
    ({"megatron_config": {"x": 1}}, "Megatron"),
    ({"use_tomorrow": 0}, "does not know"),
    ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "olora"}, "converted"),
    ({"init_lora_weights": "corda"}, "converted"),
    ({"init_lora_weights": "lora_ga"}, "converted"),
    ({"init_lora_weights": "loftq"}, "base weights"),
    ({"init_lora_weights": ["true"]}, "base weights"),
    ({"r": 0}, "rank from 1"),
    ({"r": -4}, "rank from 1"),
    ({"r": 4.0}, "rank from 1"),
    ({"r": True}, "rank from 1"),
    ({"r": 1025}, "to 1024"),
    ({"r": None}, "rank from 1"),
    ({"rank_pattern": {"q_proj": 0}}, "rank 1"),
    ({"rank_pattern": {str(i): 1 for i in range(2049)}}, "at most"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    ({"lora_alpha": math.nan}, "finite"),
    ({"lora_alpha": math.inf}, "finite"),
    ({"lora_alpha": 10**400}, "finite"),
    ({"lora_alpha": "6"}, "finite"),
    ({"alpha_pattern": {"q_proj": math.inf}}, "finite"),
    ({"use_rslora": "yes"}, "true or false"),
    ({"base_model_name_or_path": 3}, "name"),
    ({"base_model_name_or_path": "\x1b[2J\ud800"}, "printable"),
    ({"target_modules": {"q_proj": 1}}, "target_modules"),
    ({"target_modules": ["v_proj"]}, "target_modules"),
    ({"target_modules": ["j_proj", "proj"]}, "target_modules"),
    ({"target_modules": "q_proj|v_proj"}, "target_modules"),
    ({"target_modules": "(q_proj"}, "regular expression"),
    ({"target_modules": "(" * 500 + ")" * 500}, "regular expression"),
    ({"target_modules": "(?i).*"}, "flags"),
    ({"target_modules": r"(.)\1.*"}, "not supported"),
    ({"target_modules": ".*" * 600}, "at most 1024"),
    ({"rank_pattern": {"[": 4}}, "regular expression"),
    ({"rank_pattern": {"q_proj": 8}}, "config says rank 8"),
    ({"r": 8}, "config says rank 8"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED_FIELDS, ids=lambda value: str(value)[:50])
def test_config_without_rank_one_form_is_refused(
    plain: Plain, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    model = copy(plain, tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(AdapterError, match=re.escape(reason)) as refusal:
        read(tmp_path, model)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


PREFIX = "base_model.model."
A0, B0 = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"
REFUSED_TENSORS: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (
        lambda t: t.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(4, 32)}),
        "embedding LoRA",
    ),
    (lambda t: t.update({f"{PREFIX}{Q0}.lora_magnitude_vector": torch.ones(16)}), "DoRA"),
    (lambda t: t.update({f"{PREFIX}{Q0}.lora_B.bias": torch.ones(16)}), "a bias"),
    (lambda t: t.update({f"{PREFIX}{Q0}.bias": torch.ones(16)}), "a bias"),
    (lambda t: t.update({f"{PREFIX}score.modules_to_save.weight": torch.ones(2, 16)}), "saved module"),
    (lambda t: t.update({f"{PREFIX}score.original_module.weight": torch.ones(2, 16)}), "saved module"),
    (lambda t: t.update({f"{PREFIX}lm_head.weight": torch.ones(32, 16)}), "save_embedding_layers"),
    (
        lambda t: t.update({f"{PREFIX}model.embed_tokens.trainable_tokens_delta": torch.ones(16)}),
        "trained tokens",
    ),
    (lambda t: t.update({"mystery": torch.ones(1)}), "unknown tensor"),
    (lambda t: t.update({f"{PREFIX}{Q0}.lora_A.default.weight": t[A0].clone()}), "twice"),
    (lambda t: t.pop(B0), "no lora_B"),
    (lambda t: t.pop(A0), "no lora_A"),
    (lambda t: t.clear(), "no LoRA weights"),
    (lambda t: t[A0].fill_(math.nan), "NaN or infinite"),
    (lambda t: t[B0][0].fill_(math.inf), "NaN or infinite"),
    (lambda t: t[B0].fill_(3e38), "NaN or infinite"),
    (lambda t: t.update({A0: t[A0].double()}), "dtype F64"),
    (lambda t: t.update({B0: t[B0].half()}), "dtype F16"),
    (lambda t: t.update({A0: t[A0][:, :8]}), "this base model needs [4, 16]"),
    (lambda t: t.update({B0: t[B0][:8]}), "this base model needs [16, 4]"),
    (lambda t: t.update({A0: t[A0][:3]}), "config says rank 4"),
    (lambda t: t.update({A0: t[A0][..., None, None]}), "config says rank 4"),
    (lambda t: t.update({f"{PREFIX}m.experts.0.q_proj.lora_A.weight": torch.ones(4, 16)}), "expert"),
    (
        lambda t: t.update({f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 16)}),
        "nearest",
    ),
]


@pytest.mark.parametrize(("edit", "reason"), REFUSED_TENSORS, ids=[reason for _, reason in REFUSED_TENSORS])
def test_tensor_without_rank_one_form_is_refused(
    plain: Plain, tmp_path: Path, edit: Callable[..., Any], reason: str
) -> None:
    model = copy(plain, tmp_path)
    change_weights(tmp_path, edit)
    with pytest.raises(AdapterError, match=re.escape(reason)):
        read(tmp_path, model)


def test_adapter_of_another_base_is_named(plain: Plain, tmp_path: Path) -> None:
    copy(plain, tmp_path)
    change(tmp_path, base_model_name_or_path="org/other")
    with pytest.raises(AdapterError, match=r"trained for 'org/other'.*use it with that base"):
        read_adapter(tmp_path, name="a", sites={Q0: (8, 8)})


def test_scaling_that_overflows_fp16_is_refused(tmp_path: Path) -> None:
    model = save(tmp_path, dtype=torch.float16)
    change(tmp_path, lora_alpha=10_000_000)
    with pytest.raises(AdapterError, match="infinite"):
        read(tmp_path, model)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.pt", "weights.ckpt", "a.pkl"])
def test_pickles_are_refused_and_never_run(plain: Plain, tmp_path: Path, file: str) -> None:
    folder, mark = tmp_path / "adapter", tmp_path / "executed"
    model = copy(plain, folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(AdapterError, match=r"pickle.*safe_serialization"):
        read(folder, model)
    assert not mark.exists()
    (folder / file).rename(folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        read(folder, model)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"\xff" * 64, "cannot be read"),  # a header of 2**64 bytes
        ((2**40).to_bytes(8, "little") + b"{}", "cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "cannot be read"),
    ],
)
def test_corrupted_weights_are_refused(plain: Plain, tmp_path: Path, content: bytes, reason: str) -> None:
    model = copy(plain, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match=reason):
        read(tmp_path, model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds list"),
        (b"{}", "LORA"),
        (b" " * (16 * 2**20 + 1), "bytes"),
    ],
    ids=["cut", "binary", "deep", "list", "empty", "huge"],
)
def test_malformed_config_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=reason):
        read_config(tmp_path)


def test_foreign_places_are_refused(plain: Plain, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="missing"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_config(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="a file"):
        read_config(tmp_path / "file")
    model = copy(plain, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        read(tmp_path / "adapter", model)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"x": "../other.safetensors"}, "plain name"),
        ({"x": "/etc/other.safetensors"}, "plain name"),
        ({"x": "sub\\other.safetensors"}, "plain name"),
        ({"x": "weights.bin"}, "plain name"),
        ({"x": 3}, "plain name"),
        ({"x": "link.safetensors"}, "leaves the folder"),
        ({"x": "loop.safetensors"}, "link"),
        ({"x": "absent.safetensors"}, "cannot be read"),
        ({str(i): f"{i}.safetensors" for i in range(101)}, "101 files"),
        ({}, "0 files"),
        ([], "0 files"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_index_cannot_leave_the_folder(plain: Plain, tmp_path: Path, weight_map: Any, reason: str) -> None:
    folder = tmp_path / "adapter"
    model = copy(plain, folder)
    (folder / "adapter_model.safetensors").rename(tmp_path / "other.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(AdapterError, match=reason):
        read(folder, model)


def test_index_that_lists_other_tensors_is_refused(plain: Plain, tmp_path: Path) -> None:
    model = copy(plain, tmp_path)
    shard(tmp_path)
    index = tmp_path / "adapter_model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"].popitem()
    index.write_text(json.dumps(raw))
    with pytest.raises(AdapterError, match="does not hold"):
        read(tmp_path, model)


def test_links_of_the_hub_cache_are_followed_and_others_are_not(plain: Plain, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshots" / "1a2b", tmp_path / "blobs"
    model = copy(plain, folder)
    expected = read(folder, model).hash
    blobs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(Path("../../blobs") / name)
    assert read(folder, model).hash == expected
    (tmp_path / "snapshots").rename(tmp_path / "shots")
    with pytest.raises(AdapterError, match="leaves the folder"):
        read(tmp_path / "shots" / "1a2b", model)


def test_one_text_may_be_target_and_pattern() -> None:
    matcher = Matcher()
    assert matcher.value({"q_proj": 1}, Q0, 0) == 1
    assert matcher.fullmatch(r"(.*\.)?(q_proj)$", Q0)


NAMES = [Q0, "q_proj", "model.layers.11.mlp.up_proj", "a.b", "x", "h.1.attn.c_attn", "lm_head"]
PATTERNS = [
    *(
        UNSLOTH,
        "q_proj",
        ".*",
        "",
        "layers.0.*",
        r"^model\.layers\.\d+\..*_proj",
        "q_proj|lm_head",
        "(a|b|x)+",
    ),
    *(
        "[^a-z]*",
        r"\w+(\.\w+){1,3}",
        r"(model\.)?(?=layers).*q_proj",
        r"(?!model).*",
        "x?",
        "(?:h|x)(.*?)",
        "a)|(x",
    ),
    *(r"[\d.x]{1}", r"[^\W_]+", r"\S*?\bup_proj\b", "((a?)*.b*)*", r"h\.[0-9]\.attn\D*$", ".{4,7}", "x{0}x"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_matcher_agrees_with_re(pattern: str) -> None:
    from peft.utils.other import get_pattern_key

    for name in NAMES:
        assert Matcher().value({pattern: True}, name, False) == (get_pattern_key([pattern], name) != name) or (
            pattern == name
        )
        if pattern != "a)|(x":
            assert Matcher().fullmatch(pattern, name) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(.*)*!",
            "(a|a)*!",
            r"(\w+\.?)+!",
            ".*" * 30 + "!",
            "(?:.|.)" * 50 + "!",
            "((((.{99}){99}){99}){99}){99}",
        ),
        *(
            "(?=.*" * 60 + "!" + ")" * 60,
            "(" * 300 + ".*" + ")*" * 300,
            "(.?){4000000000}!",
            "(){4000000000}",
        ),
    ],
    ids=range(10),
)
def test_costly_patterns_end_soon(pattern: str) -> None:
    matcher = Matcher(steps=20_000)
    with contextlib.suppress(AdapterError):  # ended by an answer or by a refusal
        matcher.value({pattern: True}, "model.layers.0.self_attn." + "a" * 60, False)
    assert matcher.steps >= -1000
