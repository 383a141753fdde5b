"""An adapter's names and whole tensors against a base: modules saved under another layout, copies of the base's own.

PEFT writes the names that the model had while it was trained. transformers moves modules from version to version
(`language_model.model` -> `model.language_model`) and takes the text model out of a full one; adapters of the same
weights then say other names. PEFT also saves a whole output layer or embedding beside a LoRA on it, changed or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from hilora.base.fingerprint import BaseInfo
from hilora.base.stored import Layout, layouts, stored_weights
from hilora.errors import AdapterError
from hilora.pool.peft_config import show

WRAPPED = re.compile(r"^base_model\.model\.|\.base_layer(?=\.(?:weight|bias)$)")
NO_BIAS = "bias='none' and lora_bias=False"


def present_names(
    saved: Iterable[str], sites: Mapping[str, tuple[int, int]], base: BaseInfo | None, trained_for: str
) -> dict[str, str]:
    """Module as it was saved -> as the base model has it now.

    Args:
        saved: the adapter's modules.
        sites: those of the base model.
        base: the base model; without, only the present names are known.
        trained_for: the base that the adapter names, "" if none.

    Raises:
        AdapterError: a module is in an expert layer, or the base has none that was ever called so.
    """
    names = {name: name for name in saved}
    unknown = [name for name in names if name not in sites]
    for layout in _layouts(base) if unknown else ():
        found = {name: layout.module(name) for name in unknown}
        names |= {name: now for name, now in found.items() if now in sites}
        unknown = [name for name in unknown if names[name] not in sites]
        if not unknown:
            break
    if experts := [name for name, now in names.items() if ".experts." in f"{name} {now}"]:
        raise AdapterError(
            f"adapts {show(experts[0])}, inside an expert layer, where tokens are reordered; train without"
        )
    if unknown:
        raise AdapterError(_absent(unknown[0], sites, base, trained_for))
    first: dict[str, str] = {}
    for name, now in names.items():
        if now in first:
            raise AdapterError(
                f"holds {now} twice, as {show(first[now])} and as {show(name)}; save the adapter again"
            )
        first[now] = name
    return names


def _layouts(base: BaseInfo | None) -> Iterable[Layout]:
    return () if base is None else layouts(base.name, base.model_type)


def _absent(name: str, sites: Mapping[str, tuple[int, int]], base: BaseInfo | None, trained_for: str) -> str:
    """What is wrong with a module that the base does not have: only its prefix, or all of it."""
    head, tail = _split(name)
    if own := sorted({prefix for prefix, same in map(_split, sites) if same == tail}):
        return (
            f"adapts {show(name)}, which this base model has under the prefix {' or '.join(map(show, own))}, not "
            f"{show(head)}: it was saved from another class or layout. Save it again from the base as "
            "AutoModelForCausalLM loads it, or rename that prefix in its tensors if the weights are the same"
        )
    near = get_close_matches(name[:200], sites, n=1, cutoff=0)
    absent = f"adapts {show(name)}, which this base model does not have (nearest: {', '.join(near)}); "
    if base is not None and trained_for and base.goes_by(trained_for):
        return absent + "it was trained for a part of that base that is not loaded here: train it without that part"
    return absent + f"it was trained for {show(trained_for or None)}: use it with that base model"


def _split(name: str) -> tuple[str, str]:
    """(what stands before a module's layer, the rest): layers are numbered; without, only the last part counts."""
    parts = name.split(".")
    start = next((i - 1 for i, part in enumerate(parts) if part.isdigit() and i), len(parts) - 1)
    return ".".join(parts[:start]), ".".join(parts[start:])


def check_copies(copies: Mapping[str, Any], base: BaseInfo | None) -> None:
    """Pass over whole tensors that are the base's own, up to their dtype; refuse all others.

    Args:
        copies: key -> its slice in the adapter's file.
        base: the base model; its files are read, never fetched.

    Raises:
        AdapterError: a tensor differs from the base's, or cannot be compared with it.
    """
    stored = stored_weights(base.name) if copies and base is not None else None
    for key, copy in copies.items():
        same = None if stored is None else stored.holds(WRAPPED.sub("", key), copy)
        if same:
            continue
        bias = key.endswith("bias")
        raise AdapterError(
            f"holds {show(key)}, {'a bias' if bias else 'the full weights of a base module'}, {_why(same, base)}; "
            + (f"train with {NO_BIAS}" if bias else "save with save_embedding_layers=False")
        )


def _why(same: bool | None, base: BaseInfo | None) -> str:
    if same is False:
        return "which differ from this base model's"
    where = "none was given" if base is None else f"it has no safetensors file with it at {show(base.name)}"
    return f"which cannot be compared with the base model's ({where})"
