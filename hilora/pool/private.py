"""Samples that stay at home: what routing keeps of them, made by whoever has the texts, checked by whoever takes it.

The file holds the tensors of `route.features.Features` and says which embedder made them. It is a stranger's:
shapes, types, lengths and hashes are looked at, and it has to look like what this embedder makes of texts. That it
was made of texts at all, nobody can see; what it does to others' prompts, `route.capture` asks.

What it gives away: embeddings can be turned back into texts of much the same meaning by whoever has the embedder, and
hashed counts tell whether a guessed phrase is among them (`route.features`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilora.base.embed import EmbedderInfo
from hilora.errors import InputError, MismatchError
from hilora.pool import store
from hilora.route.features import BUCKETS, CHARACTERS, LONGEST, WORDS, Features
from hilora.route.outline import MARKS

TENSORS = {
    "embeddings": torch.float32,
    "characters": torch.int8,
    "phrases": torch.int32,
    "phrases_of_text": torch.int32,
    "outlines": torch.int32,
}
"""Of a file, with their types; the last four together or not at all."""
WAY = f"characters {CHARACTERS} in {BUCKETS}, words {WORDS}, outlines of {MARKS}"
"""How terms are hashed."""
MARGIN = 1.5
"""Lengths of embeddings may differ from the pool's by this factor."""


def write_features(path: Path, features: Features, embedder: EmbedderInfo) -> None:
    """Write what is known of some texts.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    about = {"dim": embedder.dim, "instruction": embedder.instruction, "fingerprint": embedder.fingerprint}
    tensors = {name: tensor.contiguous() for name, tensor in features.tensors().items()}
    store.write_whole(path, save(tensors, {"hilora": json.dumps({"embedder": about, "terms": WAY})}))


def read_features(path: Path, embedder: EmbedderInfo, like: Sequence[Features], most: int) -> Features:
    """Read what `write_features` wrote.

    Args:
        path: the file.
        embedder: the pool's.
        like: of some of the pool's adapters, whose embeddings have the length that these should have.
        most: texts.

    Raises:
        InputError: it is damaged, or not what texts are turned into.
        MismatchError: it was made with another embedder.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            _check_about(file.metadata() or {}, embedder)
            _check_shapes({name: file.get_slice(name) for name in file.keys()}, embedder.dim, most)  # noqa: SIM118
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"The samples' features are no safetensors file: {error}. Make them again.") from error
    for name, tensor in tensors.items():
        if tensor.dtype != TENSORS[name]:
            raise InputError(f"{name} of the features is {tensor.dtype}; expected {TENSORS[name]}. Make them again.")
    _check_vectors(tensors["embeddings"], like)
    if "characters" in tensors:
        _check_terms(tensors)
    return Features.from_tensors(tensors)


def _check_about(found: dict[str, str], embedder: EmbedderInfo) -> None:
    try:
        about = json.loads(found["hilora"])
        made, terms = about["embedder"], about["terms"]
        own = {"dim": embedder.dim, "instruction": embedder.instruction, "fingerprint": embedder.fingerprint}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError("The samples' features do not say what made them. Make them with: hilora") from error
    if made != own:
        raise MismatchError(
            f"The samples' features are of another embedder; this pool's is {embedder.name!r} (fingerprint "
            f"{embedder.fingerprint}, instruction {embedder.instruction!r}). Make them with it."
        )
    if terms != WAY:
        raise InputError(f"The samples' terms were hashed in another way; expected {WAY}. Use this hilora.")


def _check_shapes(slices: dict[str, Any], dim: int, most: int) -> None:
    if set(slices) not in ({"embeddings"}, set(TENSORS)):
        raise InputError(
            f"The features hold {sorted(slices)!r:.200}; expected {', '.join(TENSORS)}. Make them again."
        )
    shapes = {name: list(each.get_shape()) for name, each in slices.items()}
    count = shapes["embeddings"][0] if shapes["embeddings"] else 0
    expected = {"embeddings": [count, dim], "characters": [count, BUCKETS], "phrases_of_text": [count]}
    expected["outlines"] = [count, MARKS]
    for name, shape in shapes.items():
        if name in expected and shape != expected[name]:
            raise InputError(f"{name} of the features has shape {shape}; expected {expected[name]}. Make them again.")
    if count > most:
        raise InputError(f"The features are of {count} samples; at most {most} are taken. 20 are enough.")
    if "phrases" in shapes and (len(shapes["phrases"]) != 1 or shapes["phrases"][0] > count * WORDS * LONGEST):
        raise InputError(
            f"phrases of the features has shape {shapes['phrases']}: more than texts have. Make them again."
        )


def _check_vectors(vectors: Tensor, like: Sequence[Features]) -> None:
    if not vectors.isfinite().all():
        raise InputError("The features hold NaN or infinite embeddings. Make them again.")
    lengths = vectors.double().norm(dim=1)
    if like:
        usual = torch.cat([own.embeddings for own in like]).double().norm(dim=1)
        low, high = float(usual.min()) / MARGIN, float(usual.max()) * MARGIN
    else:
        low, high = 1e-3, 1e3
    if len(vectors) and not (low <= float(lengths.min()) and float(lengths.max()) <= high):
        raise InputError(
            f"The features' embeddings have lengths from {lengths.min():.3g} to {lengths.max():.3g}; this embedder's "
            f"have {low:.3g} to {high:.3g}. Make them with it."
        )
    if len(vectors) > 1 and len(vectors.unique(dim=0)) < 2:
        raise InputError("The features' embeddings are all the same, which those of texts are not. Make them again.")


def _check_terms(tensors: dict[str, Tensor]) -> None:
    sizes, phrases = tensors["phrases_of_text"].long(), tensors["phrases"].long()
    wrong = bool((sizes < 0).any()) or int(sizes.sum()) != len(phrases)
    if not wrong and len(phrases):
        text = torch.arange(len(sizes)).repeat_interleave(sizes)
        rises = (phrases[1:] > phrases[:-1]) | (text[1:] != text[:-1])  # each id once, ascending
        wrong = bool((phrases < 0).any()) or not bool(rises.all())
        wrong |= bool(((sizes > 0) & (tensors["characters"] == 0).all(1)).any())  # words without characters
    wrong |= bool((tensors["outlines"] < 0).any()) or any(len(row.unique()) < len(row) for row in tensors["outlines"])
    if wrong or bool((tensors["characters"] == -128).any()):
        raise InputError("The features' terms are not as texts' are. Make them again.")
