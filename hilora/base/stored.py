"""A base's weights as they lie in its files: which tensor is which module's, what a few say, who shares them.

Files and models name the same weights differently: a checkpoint keeps the names of the version that saved it, of a
bare backbone, or of the full model around a text model. transformers renames them while it loads, and so does this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hilora.base.models import auto_class, load_config, resolve_base, told_in_a_line
from hilora.errors import ModelError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = {"F64", "F32", "F16", "BF16"}
SPANS, SPAN = 64, 1024  # of each file, where only its bytes are compared
ROWS = 4096  # compared at once


class Layout:
    """How one architecture's tensors are renamed on loading.

    Args:
        skeleton: a model of the architecture; its weights may be on the meta device.
    """

    def __init__(self, skeleton: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found: list[Any] = get_model_conversion_mapping(skeleton)
        self._renamings: list[Any] = [each for each in found if isinstance(each, WeightRenaming)]
        self._converters: list[Any] = [each for each in found if isinstance(each, WeightConverter)]
        self._prefix = str(skeleton.base_model_prefix)
        self._state = skeleton.state_dict()
        self._own = {name: id(p) for name, p in skeleton.named_parameters(remove_duplicate=False)}

    def loaded(self, key: str) -> str | None:
        """The model's name of a file's tensor; None where it is no parameter by itself (fused, split, unused)."""
        from transformers.core_model_loading import rename_source_key

        name, made = rename_source_key(key, self._renamings, self._converters, self._prefix, self._state)
        return name if made is None and name in self._state else None

    def module(self, saved: str) -> str:
        """The present name of a module that an adapter names as it was saved."""
        from transformers.core_model_loading import rename_source_key

        now: str = rename_source_key(f"{saved}.weight", self._renamings, [])[0]
        return now.removesuffix(".weight")

    def tied(self, name: str) -> list[str]:
        """Parameters that are one with this one, itself first: an output layer may be the embedding."""
        own = self._own.get(name)
        return [name, *(other for other, p in self._own.items() if p == own and other != name)]


class Stored:
    """Tensors in a base's safetensors files, by the names of the loaded model.

    Args:
        files: the safetensors files.
        layout: of the model that loads them.
    """

    def __init__(self, files: Sequence[Path], layout: Layout) -> None:
        from transformers.core_model_loading import dot_natural_key

        keys: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                keys.update(dict.fromkeys(file.keys(), path))
        self._layout = layout
        self._places: dict[str, tuple[Path, str]] = {}
        for key in sorted(keys, key=dot_natural_key):
            if (name := layout.loaded(key)) is not None:
                self._places[name] = keys[key], key

    def first(self, name: str, count: int) -> list[float] | None:
        """The first values of a parameter's first row; None where it is not in the files as floating numbers."""
        for part in self._open(name):
            if part.get_dtype() in FLOATS and len(part.get_shape()) == 2:
                return list(map(float, part[0:1, :count].float().flatten()))
        return None

    def holds(self, name: str, copy: Any) -> bool | None:
        """Whether a copy (a slice of another file) is this parameter, but for the dtype; None if it is not here."""
        for part in self._open(name):
            if part.get_dtype() not in FLOATS:
                return None
            if copy.get_dtype() not in FLOATS or not part.get_shape() or part.get_shape() != copy.get_shape():
                return False
            return all(
                _same(part[at : at + ROWS], copy[at : at + ROWS]) for at in range(0, part.get_shape()[0], ROWS)
            )
        return None

    def _open(self, name: str) -> Iterator[Any]:
        """The parameter's slice, open while it is looked at; nothing where it is not in the files."""
        for each in self._layout.tied(self._layout.loaded(name) or name):
            if each in self._places:
                path, key = self._places[each]
                with safe_open(path, "pt") as file:
                    yield file.get_slice(key)
                return


def _same(own: Tensor, copy: Tensor) -> bool:
    """Whether a copy is what loading in some dtype makes of weights; no trained change is that small everywhere."""
    return any(
        torch.equal(own.to(dtype).to(copy.dtype), copy) for dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def skeleton_of(config: Any, name: str) -> Any:
    """The model that `load_base` makes of a config, without weights.

    Raises:
        ModelError: transformers has no causal or encoder-decoder model for it.
    """
    with told_in_a_line(f"The base model {name!r} cannot be made from its config", "Check it."), torch.device("meta"):
        return auto_class(config, name).from_config(config, trust_remote_code=False)


def layouts(name: str, model_type: str) -> Iterator[Layout]:
    """How tensors of a base are renamed, by the classes that may load it; nothing is fetched.

    Args:
        name: the base's; where its config is not on this machine, the defaults of its architecture are taken.
        model_type: transformers' name for the architecture.
    """
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    try:
        config = load_config(name, local=True)
    except ModelError:
        if model_type not in CONFIG_MAPPING:
            return
        config = CONFIG_MAPPING[model_type]()
    with suppress(ModelError):
        yield Layout(skeleton_of(config, name))
    if type(config) in AutoModelForImageTextToText._model_mapping:
        with torch.device("meta"):
            yield Layout(AutoModelForImageTextToText.from_config(config, trust_remote_code=False))


def stored_weights(name: str) -> Stored | None:
    """A base's weights in files of this machine; None where there are none. Nothing is fetched."""
    with suppress(ModelError), told_in_a_line(name, ""):
        if files := weight_files(name, local=True):
            return Stored(files, Layout(skeleton_of(load_config(name, local=True), name)))
    return None


def weight_files(name: str, *, local: bool = False, pickled: bool = False) -> list[Path]:
    """The safetensors files of a base, from its folder or the Hub's cache; [] if it has none.

    Args:
        name: a name or a path.
        local: fetch nothing.
        pickled: its pickled files instead, of which only bytes may be compared.
    """
    path = Path(resolve_base(name))
    whole = "pytorch_model.bin" if pickled else "model.safetensors"
    index = f"{whole}.index.json"
    if path.is_dir():
        listed = path / index
        if listed.is_file():
            return [path / part for part in _parts(listed)]
        if (path / whole).is_file():
            return [path / whole]
        return sorted(file for pattern in (PICKLED if pickled else ("*.safetensors",)) for file in path.glob(pattern))
    from transformers.utils.hub import cached_file

    found: Callable[..., Any] = cached_file
    options = {"_raise_exceptions_for_missing_entries": False, "local_files_only": local}
    if listing := found(name, index, **options):
        parts = [found(name, part, **options) for part in _parts(Path(listing))]
        return [Path(part) for part in parts] if all(parts) else []
    single = found(name, whole, **options)
    return [Path(single)] if single else []


def _parts(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def hash_files(files: Sequence[Path]) -> str:
    """Hash of files' sizes and of stretches spread over them: fast, and no two models share it; "" of none."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(SPANS):
                stream.seek(size * i // SPANS)
                digest.update(stream.read(SPAN))
    return digest.hexdigest()[:16] if files else ""
