"""What a base model is, for a pool: its linear modules, its prompt template, and a sketch of its weights.

The sketch is a few numbers out of a few weight matrices. It is compared with a tolerance rather than hashed,
so that a base loaded in bf16 or fp16 is still the same base, and another model of the same shape is not. Where no
weight can be sampled (pickled files, which are never read as such; quantised ones), the files' bytes stand for it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from hilora.base.embedded import BASES
from hilora.base.models import load_config, load_tokenizer, told_in_a_line
from hilora.base.stored import Layout, Stored, hash_files, skeleton_of, stored_weights, weight_files
from hilora.errors import AdapterError, MismatchError, ModelError

_log = logging.getLogger(__name__)  # warnings go to standard error, unless the program around wants them elsewhere
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
        files: where the sketch is empty, a hash of the weight files' bytes; "" if there are none.
    """

    name: str
    model_type: str
    template: str
    sites: dict[str, tuple[int, int]]
    sketch: dict[str, list[float]]
    files: str = ""

    def to_json(self) -> str:
        """As stored in a pool."""
        raw = asdict(self)
        if not self.files:
            del raw["files"]  # most pools do without, and earlier versions read them
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> BaseInfo:
        """Inverse of `to_json`."""
        raw = json.loads(text)
        raw["sites"] = {name: (int(i), int(o)) for name, (i, o) in raw["sites"].items()}
        return cls(**raw)

    def check_adapter(self, adapter: str, base_model: str) -> None:
        """Refuse an adapter that says it was trained for another base, see `goes_by`.

        Raises:
            AdapterError: the names differ.
        """
        if base_model and not self.goes_by(base_model):
            raise AdapterError(
                f"Adapter {adapter!r} was trained for {base_model!r}, and this pool serves {self.name!r}. "
                f"If both are the same weights, add it with --any-base."
            )

    def goes_by(self, name: str) -> bool:
        """Whether this base is called so: names are compared by their last part, letters and digits only."""
        known = {self.name, *(BASES[self.name].aliases if self.name in BASES else ())}
        return _plain(name) in {_plain(own) for own in known}

    def is_same(self, other: BaseInfo) -> bool:
        """Whether another one describes this base, whatever its name; it is not where weights cannot be compared."""
        return (self.sites, self.template) == (other.sites, other.template) and bool(
            self._has_weights(other.sketch, other.files)
        )

    def _has_weights(self, sketch: Mapping[str, Sequence[float]], files: str) -> bool | None:
        """Whether weights are this base's, by their sketch, else their files' bytes; None where it cannot be told."""
        if self.sketch.keys() & sketch.keys():
            return same_sketch(self.sketch, sketch)
        return self.files == files if self.files and files else None

    def check_model(self, model: Any, template: str) -> None:
        """Refuse to use the pool with another model than it was made for.

        Raises:
            MismatchError: modules, weights or prompt template differ.
        """
        from hilora.base.modules import linear_shapes

        shapes = linear_shapes(model)
        for site, shape in self.sites.items():
            if shapes.get(site) != shape:
                _refuse_layer(model, site)
                raise MismatchError(
                    f"The pool was made for {self.name!r} with {site} of shape {shape}, and this model has "
                    f"{shapes.get(site, 'no such module')}. Load that base, or make a new pool for this one."
                )
        self._check_weights(model)
        if template != self.template:
            raise MismatchError(
                f"The pool's adapters were added with prompt template {self.template}, and this tokenizer "
                f"has {template}. Use the tokenizer of {self.name!r}."
            )

    def _check_weights(self, model: Any) -> None:
        """Compare weights, else the files that they came from; says so where neither can be."""
        source = _source(model)
        found = sketch_model(model, list(self.sketch))
        if not found:  # quantised or offloaded
            found = _stored_sketch(source, list(self.sketch))
        same = self._has_weights(found, _hash_source(source) if self.files else "")
        if same is False:
            raise MismatchError(
                f"The pool was made for {self.name!r}; this model has the same shape and other weights. "
                f"Load that base, or make a new pool for this one."
            )
        if same:
            return
        why = "this model's weights cannot be sampled" if self.sketch else "the pool has no sample of its weights"
        _log.warning(
            f"hilora: cannot check that this model is {self.name!r}, for which the pool was made: {why}. Any of "
            f"the same shape would do; make sure that it is the right one."
        )


def _refuse_layer(model: Any, site: str) -> None:
    """Refuse a site that is there, and quantised in a way that leaves nothing that stands for a linear module."""
    found = dict(model.named_modules()).get(site)
    if found is not None and getattr(model.config, "quantization_config", None):
        raise MismatchError(
            f"{site} is a {type(found).__name__} in this quantised model, which does not say how wide it is: no "
            f"adapter can go there. Load the base unquantised, or quantised with bitsandbytes."
        )


def _plain(name: str) -> str:
    """The last part of a name or path, of any system, letters and digits only; a Hub cache's folder by its model."""
    parts = [part for part in re.split(r"[/\\]", name) if part]
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[-3].split("--")
    return "".join(c for c in parts[-1].lower() if c.isalnum()) if parts else ""


def describe_base(name: str) -> BaseInfo:
    """Describe a base model by name or path from its config and files, without loading its weights.

    Raises:
        ModelError: there is no such model, it is no language model, has no tokenizer, or its files cannot be read.
    """
    from hilora.base.modules import linear_shapes
    from hilora.base.prompts import template_id

    config = load_config(name)
    skeleton = skeleton_of(config, name)
    sites = linear_shapes(skeleton)
    template = template_id(load_tokenizer(name))
    with told_in_a_line(f"The weights of the base model {name!r} cannot be read", "Fetch its files again."):
        stored = Stored(weight_files(name), Layout(skeleton))
        sketch = _sketch(stored, _spread(list(sites)))
        files = "" if sketch else _hash_source(name)
    if not sketch:
        _warn_unsampled(name, files)
    return BaseInfo(name, config.model_type, template, sites, sketch, files)


def _warn_unsampled(name: str, files: str) -> None:
    _log.warning(
        f"hilora: the weights of {name!r} cannot be sampled (they are pickled, quantised, or not there); "
        + ("the pool will know the base by its files' bytes alone." if files else "any base of its shape will pass.")
    )


def _hash_source(name: str) -> str:
    """What the weight files' bytes say of a base that cannot be sampled; "" where they are not here."""
    with suppress(ModelError), told_in_a_line(name, ""):
        for pickled in (False, True) if name else ():
            if files := weight_files(name, local=True, pickled=pickled):
                return hash_files(files)
    return ""


def describe_model(name: str, model: Any, tokenizer: Any) -> BaseInfo:
    """Describe a base model that is already loaded."""
    from hilora.base.modules import linear_shapes
    from hilora.base.prompts import template_id

    sites = linear_shapes(model)
    few = _spread(list(sites))
    sketch = sketch_model(model, few) or _stored_sketch(_source(model), few)
    files = "" if sketch else _hash_source(_source(model))
    if not sketch:
        _warn_unsampled(name, files)
    return BaseInfo(name, model.config.model_type, template_id(tokenizer), sites, sketch, files)


def _source(model: Any) -> str:
    """Where a model was loaded from, "" where it does not say."""
    return str(getattr(model.config, "_name_or_path", None) or "")


def _spread(sites: Sequence[str]) -> list[str]:
    """A few sites, evenly spread; not the output layer, which may share the embedding's weights."""
    inner = [site for site in sites if "." in site]
    step = max(1, len(inner) // SKETCH_SITES)
    return inner[::step][:SKETCH_SITES]


def sketch_model(model: Any, sites: Sequence[str]) -> dict[str, list[float]]:
    """The sketch of a loaded model; sites whose weights are quantised or offloaded are left out."""
    from hilora.base.modules import is_plain

    sketch = {}
    for site in sites:
        weight = dict(model.get_submodule(site).named_parameters(recurse=False)).get("weight")
        if weight is not None and is_plain(weight) and weight.device.type != "meta":
            sketch[site] = weight.detach()[0, :SKETCH_VALUES].float().tolist()
    return sketch


def _stored_sketch(source: str, sites: Sequence[str]) -> dict[str, list[float]]:
    """The sketch from the files that a model says it was loaded from; empty where none are here."""
    stored = stored_weights(source) if source and sites else None
    return {} if stored is None else _sketch(stored, sites)


def _sketch(stored: Stored, sites: Sequence[str]) -> dict[str, list[float]]:
    """The sketch from a base's files, reading only the slices it needs."""
    found = {site: stored.first(f"{site}.weight", SKETCH_VALUES) for site in sites}
    return {site: values for site, values in found.items() if values is not None}


def same_sketch(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether two sketches are of the same weights, up to rounding to bf16 or fp16."""
    for site in one.keys() & other.keys():
        size = max((abs(v) for v in one[site]), default=0.0)
        for a, b in zip(one[site], other[site], strict=True):
            if abs(a - b) > 2**-7 * abs(a) + 2**-9 * size:
                return False
    return True
