"""What adapter_config.json may say: an allow-list, read as data, with the reason for everything refused.

A stranger wrote it. Nothing that it names is loaded; an unknown field that is set is refused, since it may
change what the weights mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hilora.errors import AdapterError

CONFIG = "adapter_config.json"
MAX_JSON, MAX_RANK, MAX_PATTERNS, MAX_TEXT = 16 * 2**20, 1024, 2048, 4096
MLX_WEIGHTS = ("adapters.safetensors", "adapters.npz")
MLX_FIELDS = ("fine_tune_type", "lora_parameters", "lora_layers", "adapter_path")
HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")  # they leave the base weights as they are


def _any(value: object) -> bool:
    return True


def _unset(value: object) -> bool:
    return value is None or value is False or value in ([], {})


def _flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _text(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable())


def _rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _pattern(valid: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return value is None or (
            isinstance(value, dict) and len(value) <= MAX_PATTERNS and all(map(valid, value.values()))
        )

    return check


def _targets(value: object) -> bool:
    return _text(value) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _init(value: object) -> bool:
    return _flag(value) or (isinstance(value, str) and value.lower() in HARMLESS_INITS)


# Field -> (what is accepted, why the rest is not). Read from the configs that PEFT 0.5 to 0.21 writes.
FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "peft_type": (lambda value: value == "LORA", "only LORA has rank-one components; train a LoRA adapter"),
    "r": (_rank, f"expected an integer rank from 1 to {MAX_RANK}"),
    "lora_alpha": (_alpha, "expected a finite number"),
    "rank_pattern": (_pattern(_rank), f"expected {{module: rank 1 to {MAX_RANK}}}, at most {MAX_PATTERNS}"),
    "alpha_pattern": (_pattern(_alpha), f"expected {{module: finite number}}, at most {MAX_PATTERNS}"),
    "use_rslora": (_flag, "expected true or false"),
    "fan_in_fan_out": (_flag, "expected true or false"),  # the base's layout; A and B stay as they are
    "base_model_name_or_path": (_text, f"expected a model's name, printable, at most {MAX_TEXT} characters"),
    "target_modules": (_targets, "expected a list of module names or a regular expression"),
    "bias": (lambda value: value in (None, "none"), "it changes base biases; train with bias='none'"),
    "init_lora_weights": (
        _init,
        "it may change the base weights that the adapter belongs to; pissa, olora, corda, lora_ga: save it "
        + "converted, save_pretrained(..., path_initial_model_for_weight_conversion=...)",
    ),
    "use_dora": (
        _unset,
        "DoRA rescales whole weights, which rank-one components cannot; train with use_dora=False",
    ),
    "lora_bias": (_unset, "a bias is no rank-one component; train with lora_bias=False"),
    "modules_to_save": (_unset, "full copies of modules cannot be routed; train without modules_to_save"),
    "trainable_token_indices": (_unset, "changed embeddings cannot be routed; train linear modules only"),
    "target_parameters": (_unset, "only linear modules can be routed; use target_modules"),
    "layer_replication": (_unset, "it builds another base model; train on the plain base"),
    "alora_invocation_tokens": (_unset, "aLoRA is off before its invocation tokens; train a plain LoRA"),
    "use_qalora": (_unset, "QA-LoRA pools the inputs; train a plain LoRA"),
    "use_bdlora": (_unset, "BD-LoRA stores block-diagonal factors; train a plain LoRA"),
    "kasa_config": (_unset, "KaSA changes the base weights; train a plain LoRA"),
    "monteclora_config": (_unset, "MonteCLoRA samples its weights; train a plain LoRA"),
    "arrow_config": (_unset, "it is a router over adapters, not an adapter; add its experts one by one"),
    "megatron_config": (_unset, "Megatron's parallel layers are not this base's; train on the plain base"),
}
# Notes, and settings of training that leave no trace in the forward pass. Which layers: the weights decide.
FIELDS |= dict.fromkeys(
    (
        *("auto_mapping", "inference_mode", "peft_version", "revision", "task_type"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config", "runtime_config"),
        *("exclude_modules", "layers_pattern", "layers_to_transform", "megatron_core", "qalora_group_size"),
        *("ensure_weight_tying", "lora_dropout", "merge_weights"),
    ),
    (_any, ""),
)


def read_config(folder: Path) -> dict[str, Any]:
    """The known fields of adapter_config.json, each one checked.

    Raises:
        AdapterError: the folder or the file is missing or malformed, or a field has no exact rank-one form.
    """
    with about(folder):
        return parse_config(folder)


@contextmanager
def about(folder: Path) -> Iterator[None]:
    """Names the folder in every error."""
    try:
        yield
    except (AdapterError, SafetensorError, OSError) as error:
        why = str(error) if isinstance(error, AdapterError) else f"cannot be read ({error}); save or fetch it again"
        raise AdapterError(f"Adapter folder {str(folder)!r}: {why}") from error


def show(value: object) -> str:
    """`value` for a message, cut short: it may be a stranger's megabyte."""
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"


def parse_config(folder: Path) -> dict[str, Any]:
    """`read_config` without the folder in its messages."""
    if not folder.is_dir():
        raise AdapterError(f"is {'a file' if folder.exists() else 'missing'}; expected a PEFT folder. Check the path")
    if is_mlx(folder):
        raise AdapterError(
            "is an MLX adapter, whose names, layout and scale are others than PEFT's. Convert it (lora_a and lora_b "
            "transposed are lora_A.weight and lora_B.weight, scale times rank is lora_alpha), or train it with PEFT"
        )
    if not (path := inside(folder, CONFIG)).is_file():
        raise AdapterError(f"has no {CONFIG}; expected a folder written by PEFT's save_pretrained. Check the path")
    raw = read_json(path)
    for field, (accepts, reason) in FIELDS.items():
        if not accepts(raw.get(field)):
            raise AdapterError(f"{field} is {show(raw.get(field))}; {reason}")
    for field, value in raw.items():
        if field not in FIELDS and not _unset(value):
            raise AdapterError(
                f"field {show(field)} is {show(value)}, which hilora does not know and which may change "
                "what the weights mean; set it to null if it does not"
            )
    return {field: value for field, value in raw.items() if field in FIELDS}


def is_mlx(folder: Path) -> bool:
    """Whether a folder was written by MLX: by its own weights, or fields of its config that PEFT never had."""
    if (folder / "adapter_model.safetensors").is_file():
        return False
    if any((folder / name).is_file() for name in MLX_WEIGHTS):
        return True
    try:
        raw = json.loads((folder / CONFIG).read_bytes()[:MAX_JSON])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and "peft_type" not in raw and any(field in raw for field in MLX_FIELDS)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of reasonable size; AdapterError otherwise."""
    if (size := path.stat().st_size) > MAX_JSON:
        raise AdapterError(f"{path.name} has {size} bytes; expected at most {MAX_JSON}. Save the adapter again")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is not valid JSON ({error}); save the adapter again") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{path.name} holds {type(raw).__name__}; expected an object. Save the adapter again")
    return raw


def inside(folder: Path, name: str) -> Path:
    """Path of a file that, if a link, stays in the folder, or in the blobs of the Hub cache around it."""
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        path = (home / name).resolve()
    except RuntimeError as error:  # a loop of links
        raise AdapterError(f"{name} is a link to itself; replace it by the file") from error
    if not any(path.is_relative_to(place) for place in homes):
        raise AdapterError(f"{name} is a link that leaves the folder; replace it by the file")
    return home / name
