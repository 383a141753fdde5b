"""What a base model is, for a pool: its linear modules, its prompt template, and a sketch of its weights.

The sketch is a few numbers out of a few weight matrices. It is compared with a tolerance rather than hashed,
so that a base loaded in bf16 or fp16 is still the same base, and another model of the same shape is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hilora.base.models import BASES, load_config, resolve_base
from hilora.errors import AdapterError, MismatchError

SKETCH_SITES = 8
SKETCH_VALUES = 16


@dataclass(frozen=True)
class BaseInfo:
    """A base model as a pool records it.

    Attributes:
        name: what the user calls it.
        model_type: transformers' name for the architecture.
        template: how prompts are rendered, see `prompts.template_id`.
        sites: (in, out) of each linear module.
        sketch: site name -> a few of its weights; empty where the weights could not be sampled.
    """

    name: str
    model_type: str
    template: str
    sites: dict[str, tuple[int, int]]
    sketch: dict[str, list[float]]

    def to_json(self) -> str:
        """As stored in a pool."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BaseInfo:
        """Inverse of `to_json`."""
        raw = json.loads(text)
        raw["sites"] = {name: (int(i), int(o)) for name, (i, o) in raw["sites"].items()}
        return cls(**raw)

    def check_adapter(self, adapter: str, base_model: str) -> None:
        """Refuse an adapter that says it was trained for another base.

        Names are compared by their last part, letters and digits only.

        Raises:
            AdapterError: the names differ.
        """
        known = {self.name, *(BASES[self.name].aliases if self.name in BASES else ())}
        if base_model and _plain(base_model) not in {_plain(name) for name in known}:
            raise AdapterError(
                f"Adapter {adapter!r} was trained for {base_model!r}, and this pool serves {self.name!r}. "
                f"If both are the same weights, add it with --any-base."
            )

    def check_model(self, model: Any, template: str) -> None:
        """Refuse to use the pool with another model than it was made for.

        Raises:
            MismatchError: modules, weights or prompt template differ.
        """
        from hilora.base.modules import linear_shapes

        shapes = linear_shapes(model)
        for site, shape in self.sites.items():
            if shapes.get(site) != shape:
                raise MismatchError(
                    f"The pool was made for {self.name!r} with {site} of shape {shape}, and this model has "
                    f"{shapes.get(site, 'no such module')}. Load that base, or make a new pool for this one."
                )
        if self.sketch and not same_sketch(self.sketch, sketch_model(model, list(self.sketch))):
            raise MismatchError(
                f"The pool was made for {self.name!r}; this model has the same shape and other weights. "
                f"Load that base, or make a new pool for this one."
            )
        if template != self.template:
            raise MismatchError(
                f"The pool's adapters were added with prompt template {self.template}, and this tokenizer "
                f"has {template}. Use the tokenizer of {self.name!r}."
            )


def _plain(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c for c in last.lower() if c.isalnum())


def describe_base(name: str) -> BaseInfo:
    """Describe a base model by name or path from its config and files, without loading its weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from hilora.base.modules import linear_shapes
    from hilora.base.prompts import template_id

    config = load_config(name)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        skeleton = auto.from_config(config)
    sites = linear_shapes(skeleton)
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(name))
    return BaseInfo(name, config.model_type, template_id(tokenizer), sites, _sketch_files(name, list(sites)))


def describe_model(name: str, model: Any, tokenizer: Any) -> BaseInfo:
    """Describe a base model that is already loaded."""
    from hilora.base.modules import linear_shapes
    from hilora.base.prompts import template_id

    sites = linear_shapes(model)
    sketch = sketch_model(model, _spread(list(sites)))
    return BaseInfo(name, model.config.model_type, template_id(tokenizer), sites, sketch)


def _spread(sites: Sequence[str]) -> list[str]:
    """A few sites, evenly spread; not the output layer, which may share the embedding's weights."""
    inner = [site for site in sites if "." in site]
    step = max(1, len(inner) // SKETCH_SITES)
    return inner[::step][:SKETCH_SITES]


def sketch_model(model: Any, sites: Sequence[str]) -> dict[str, list[float]]:
    """The sketch of a loaded model; sites whose weights are quantised or offloaded are left out."""
    sketch = {}
    for site in sites:
        weight = model.get_submodule(site).weight
        if weight.is_floating_point() and weight.device.type != "meta":
            sketch[site] = weight.detach()[0, :SKETCH_VALUES].float().tolist()
    return sketch


def _sketch_files(name: str, sites: Sequence[str]) -> dict[str, list[float]]:
    """The sketch from a base's safetensors files, reading only the slices it needs."""
    from safetensors import safe_open

    keys: dict[str, Path] = {}
    for path in weight_files(name):
        with safe_open(path, "pt") as file:
            keys.update(dict.fromkeys(file.keys(), path))
    sketch = {}
    for site in _spread(sites):
        key = _stored_key(f"{site}.weight", keys)
        if key is not None:
            with safe_open(keys[key], "pt") as file:
                sketch[site] = file.get_slice(key)[0:1, :SKETCH_VALUES].float().flatten().tolist()
    return sketch


def _stored_key(key: str, keys: Mapping[str, Path]) -> str | None:
    """Checkpoints of a bare backbone lack the first part of a module's name."""
    shortened = key.split(".", 1)[-1]
    return key if key in keys else shortened if shortened in keys else None


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a base, from its folder or the Hub's cache; [] if it has none."""
    path = Path(resolve_base(name))
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    from transformers.utils.hub import cached_file

    found: Callable[..., Any] = cached_file
    index = found(name, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index:
        parts = set(json.loads(Path(index).read_text())["weight_map"].values())
        return [Path(found(name, part)) for part in sorted(parts)]
    single = found(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    return [Path(single)] if single else []


def same_sketch(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether two sketches are of the same weights, up to rounding to bf16 or fp16."""
    for site in one.keys() & other.keys():
        size = max((abs(v) for v in one[site]), default=0.0)
        for a, b in zip(one[site], other[site], strict=True):
            if abs(a - b) > 2**-7 * abs(a) + 2**-9 * size:
                return False
    return True
