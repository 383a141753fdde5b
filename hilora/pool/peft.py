"""Reads a PEFT LoRA folder as found on the Hub into `Factors`, or says why it cannot be one.

The folder is a stranger's. Its config passes an allow-list (`peft_config`), its weights are read from
safetensors only, and names and shapes are checked against the base model by the file's header, before a
weight is touched.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hilora.base.fingerprint import BaseInfo
from hilora.base.pointers import is_pointer
from hilora.errors import AdapterError
from hilora.pool.layout import check_copies, present_names
from hilora.pool.patterns import Matcher
from hilora.pool.peft_config import about, inside, parse_config, read_config, read_json, show
from hilora.types import Adapter, Factors

__all__ = ["content_hash", "read_adapter", "read_config"]

WEIGHTS, INDEX = "adapter_model.safetensors", "adapter_model.safetensors.index.json"
MAX_TENSORS, MAX_SHARDS = 20_000, 100
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
LORA_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_SAVED = "lora_|modules_to_save|original_module|trainable_tokens|token_adapter"
COPY_KEY = re.compile(rf"base_model\.model\.(?!.*(?:{_SAVED})).+\.(?:weight|bias)")
# What else PEFT may have saved; the first that is found names it.
FOREIGN_KEYS = {
    r"lora_embedding_[AB]": "an embedding LoRA; train linear modules only",
    r"lora_magnitude_vector": "DoRA's magnitude; train with use_dora=False",
    r"\.bias$": "a bias; train with bias='none' and lora_bias=False",
    r"modules_to_save|original_module": "the full weights of a saved module; train without modules_to_save",
    r"trainable_tokens|token_adapter": "trained tokens; train linear modules only",
    r"^(?!.*lora_).*\.weight$": "the full weights of a base module; save with save_embedding_layers=False",
    r"": "an unknown tensor; expected base_model.model.<module>.lora_A.weight and .lora_B.weight only",
}


def read_adapter(
    folder: Path, *, name: str, sites: Mapping[str, tuple[int, int]], base: BaseInfo | None = None
) -> Adapter:
    """The adapter in `folder`, its scaling folded into `up` in fp32; dtypes are kept as stored.

    Args:
        folder: a PEFT folder; links may not leave it, except into the blobs of the Hub's own cache.
        name: how people will call the adapter.
        sites: linear module of the base model -> (in_features, out_features).
        base: the base model, to find modules that were saved under names of another layout of it, and to tell
            copies of its own weights from changed ones; without, both are refused.

    Raises:
        AdapterError: it is not a readable LoRA, has no exact rank-one form, or belongs to another base model.
    """
    with about(folder), ExitStack() as stack:
        config = parse_config(folder)
        halves: dict[str, dict[str, _Half]] = {}
        copies: dict[str, Any] = {}
        for path, expected in _weight_files(folder).items():
            _collect(stack.enter_context(safe_open(path, framework="pt")), path.name, expected, halves, copies)
        if not halves:
            raise AdapterError("has no LoRA weights; expected pairs of lora_A and lora_B. Save the adapter again")
        names = present_names(halves, sites, base, config.get("base_model_name_or_path") or "")
        check_copies(copies, base)
        matcher = Matcher()
        scalings = {saved: _check(saved, names[saved], halves[saved], sites, config, matcher) for saved in halves}
        factors = {names[saved]: _load(saved, halves[saved], scaling) for saved, scaling in scalings.items()}
    return Adapter(name, config.get("base_model_name_or_path") or "", factors, content_hash(factors))


def content_hash(factors: Factors) -> str:
    """sha256 (hex) of each site's name, shapes, dtype and bytes, in sorted order; an adapter's identity."""
    digest = hashlib.sha256()
    for site in sorted(factors):
        for factor in factors[site]:
            digest.update(f"{site}\0{tuple(factor.shape)}\0{factor.dtype}\0".encode())
            digest.update(factor.detach().cpu().contiguous().view(torch.uint8).numpy().data)  # NumPy has no bf16
    return digest.hexdigest()


@dataclass(frozen=True)
class _Half:
    """Where lora_A or lora_B lies, as the file's header says."""

    handle: Any
    key: str
    shape: list[int]
    dtype: str


def no_weights(names: Iterable[str]) -> str:
    """What is wrong with a folder of these files, which has no weights that are read."""
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    if any(name.startswith("adapter_model") for name in pickles):
        pickles = [name for name in pickles if name.startswith("adapter_model")]
    return only_pickled(pickles[0]) if pickles else f"has no {WEIGHTS} and no {INDEX}; save the adapter again"


def only_pickled(name: str) -> str:
    """Why a pickle is not read, and what to do."""
    return (
        f"has its weights only as a pickle ({show(name)}), which can run code when read; expected {WEIGHTS}. "
        "Load it where you trust it, and save it with safe_serialization=True"
    )


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """File -> the keys that the shard index expects in it (None without an index)."""
    if (single := inside(folder, WEIGHTS)).is_file():
        if is_pointer(single):
            raise AdapterError(
                f"has a Git LFS pointer for {WEIGHTS}, not the file; run there: git lfs install; git lfs pull"
            )
        return {single: None}
    if not (index := inside(folder, INDEX)).is_file():
        raise AdapterError(no_weights([path.name for path in folder.iterdir()]))
    shards: dict[str, set[str]] = {}
    weight_map = read_json(index).get("weight_map")
    for key, file in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise AdapterError(f"{INDEX} names {show(file)}; expected a plain name like {WEIGHTS}")
        shards.setdefault(file, set()).add(key)
    if not 1 <= len(shards) <= MAX_SHARDS:
        raise AdapterError(f"{INDEX} names {len(shards)} files in weight_map; expected 1 to {MAX_SHARDS}")
    return {inside(folder, file): keys for file, keys in shards.items()}


def _collect(
    handle: Any,
    file: str,
    expected: set[str] | None,
    halves: dict[str, dict[str, _Half]],
    copies: dict[str, Any],
) -> None:
    """Adds the header's LoRA halves to `halves`, whole weights to `copies`; refuses every other tensor."""
    keys = handle.keys()
    if expected is not None and set(keys) != expected:
        raise AdapterError(f"{file} does not hold the tensors that {INDEX} lists; save the adapter again")
    if len(keys) + 2 * len(halves) > MAX_TENSORS:
        raise AdapterError(f"has more than {MAX_TENSORS} tensors; is it an adapter?")
    for key in keys:
        if COPY_KEY.fullmatch(key):
            copies[key] = handle.get_slice(key)
            continue
        if (match := LORA_KEY.fullmatch(key)) is None:
            kind = next(kind for pattern, kind in FOREIGN_KEYS.items() if re.search(pattern, key))
            raise AdapterError(f"holds {show(key)}, {kind}")
        entry = handle.get_slice(key)
        found = halves.setdefault(match["site"], {})
        if match["half"] in found:
            raise AdapterError(f"holds {show(key)} twice under two names; save the adapter again")
        found[match["half"]] = _Half(handle, key, entry.get_shape(), entry.get_dtype())


def _check(
    saved: str,
    site: str,
    found: dict[str, _Half],
    sites: Mapping[str, tuple[int, int]],
    config: dict[str, Any],
    matcher: Matcher,
) -> float:
    """Scaling of a site whose name, rank, shapes and dtype are as config and base model say.

    The config's patterns were written for the names as they were saved, and PEFT applies them to the present ones.
    """
    if missing := {"A", "B"} - found.keys():
        raise AdapterError(f"{saved} has no lora_{missing.pop()}; expected both halves. Save the adapter again")
    base = f"it was trained for {show(config.get('base_model_name_or_path'))}: use it with that base model"
    targets = config.get("target_modules")
    if isinstance(targets, list):
        matches = any(own == target or own.endswith(f".{target}") for target in targets for own in {saved, site})
    else:
        everywhere = targets is None or targets.lower() == "all-linear"
        matches = everywhere or any(matcher.fullmatch(str(targets), own) for own in {saved, site})
    if not matches:
        raise AdapterError(f"has weights for {saved}, but target_modules is {show(targets)}; save the adapter again")
    for field in ("rank_pattern", "alpha_pattern"):
        if len({matcher.value(config.get(field), own, 0) for own in {saved, site}}) > 1:
            raise AdapterError(
                f"{field} says one thing of {saved} and another of {site}, its name in this base model; "
                "write the pattern so that it matches both"
            )
    rank = matcher.value(config.get("rank_pattern"), site, config["r"])
    alpha = matcher.value(config.get("alpha_pattern"), site, config["lora_alpha"])
    width, height = sites[site]
    for half, (ranks, features, expected) in zip(
        (found["A"], found["B"]), ((0, 1, [rank, width]), (1, 0, [height, rank])), strict=True
    ):
        if len(half.shape) != 2 or half.shape[ranks] != rank:
            raise AdapterError(f"{half.key} has shape {half.shape}, but the config says rank {rank}; save it again")
        if half.shape[features] != expected[features]:
            raise AdapterError(f"{half.key} has shape {half.shape}; this base model needs {expected}; {base}")
        if half.dtype not in DTYPES or half.dtype != found["A"].dtype:
            raise AdapterError(
                f"{half.key} has dtype {half.dtype}; expected one of {', '.join(DTYPES)}, as its partner"
            )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _load(site: str, found: dict[str, _Half], scaling: float) -> tuple[Tensor, Tensor]:
    """(down, up) in memory of their own, which no later change of the file can reach."""
    down = found["A"].handle.get_tensor(found["A"].key).contiguous().clone()
    up = found["B"].handle.get_tensor(found["B"].key)
    up = (up.float() * scaling).to(up.dtype).contiguous()  # fp32, so that a half is rounded only once
    if not (down.isfinite().all() and up.isfinite().all()):
        raise AdapterError(f"{site} has NaN or infinite weights once scaled by {scaling:g}; train it again")
    return down, up
