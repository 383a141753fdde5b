"""What is in an embedder's folder, run: encoder, pooling, normalisation; or all of sentence-transformers.

The common layout is run without importing sentence-transformers, and a BERT, such as the default, without
transformers either: both take seconds. Other layouts need the extra "embedders".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hilora.base.bert import Reader, can_read, read_bert
from hilora.base.prompts import UNBOUNDED
from hilora.errors import ModelError

Span = tuple[int, int]
"""Where a token begins and ends in its text."""


@dataclass(frozen=True)
class Encoder:
    """What is in an embedder's folder, run."""

    embed: Callable[[list[str]], Tensor]  # texts -> (text, dim); what is beyond `longest` is not read
    spans: Callable[[str], list[Span]] | None  # of all tokens of a text but special ones; None where unknown
    longest: int  # tokens that are read of a text, special ones not counted
    lengths: Callable[[Sequence[str]], list[int]] | None = None  # tokens of each text; None where that takes as long


def plain_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Encoder | None:
    """Encoder, pooling and normalisation; None where the layout has more parts."""
    pooling = pooling_of(path)
    if pooling is None:
        return None
    normalises = "Normalize" in _parts(path)
    longest = longest_text(path)
    config = _read_json(path / "config.json")
    made = _bert if can_read(path, config) else _transformer
    hidden_states, spans, lengths, room = made(path, config, longest, device, dtype)

    def encode(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            hidden, mask = hidden_states(texts)  # (text, seq, dim), (text, seq)
        return pooled(hidden, mask, pooling, normalises)

    return Encoder(encode, spans, room, lengths)


def pooling_of(path: Path) -> str | None:
    """ "mean" or "cls", where a folder holds an encoder with such pooling and at most a normalisation; else None.

    Raises:
        ModelError: the folder holds no sentence-transformers model.
    """
    parts = _parts(path)
    if parts not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    pooling = _read_json(path / "1_Pooling" / "config.json")
    mode = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [mode.get(key, "other") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    return modes[0] if modes in (["mean"], ["cls"]) else None


def longest_text(path: Path) -> int | None:
    """Tokens at which texts are cut, where the folder says so."""
    found = _read_json(path / "sentence_bert_config.json").get("max_seq_length")
    return None if found is None else int(found)


def _parts(path: Path) -> list[str]:
    """The kinds of its parts; only those of sentence-transformers itself, which would also run others."""
    types = [str(module["type"]) for module in _read_json(path / "modules.json")]
    if own := [each for each in types if not each.startswith("sentence_transformers.")]:
        raise ModelError(
            f"The embedder at {path} has a part {own[0]!r} that is code of its own, which is never run. Choose one "
            f"whose parts are all sentence-transformers' own."
        )
    return [each.rsplit(".", 1)[-1] for each in types]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.parent} is no sentence-transformers model: cannot read {path.name}.") from error


def pooled(
    hidden: Float[Tensor, "text seq dim"], mask: Shaped[Tensor, "text seq"], pooling: str, normalises: bool
) -> Float[Tensor, "text dim"]:
    """Hidden states as one vector for each text, fp32: the mean where the mask is 1, or the first."""
    hidden = hidden.float()
    if pooling == "mean":
        hidden = (hidden * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    vectors = hidden[:, 0]
    return torch.nn.functional.normalize(vectors, dim=1) if normalises else vectors


def _bert(
    path: Path, config: dict[str, Any], longest: int | None, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any, Any, int]:
    model = read_bert(path, config, device, dtype)
    stated = _read_json(path / "tokenizer_config.json").get("model_max_length") or math.inf
    longest = longest or int(min(stated, config.get("max_position_embeddings", 512)))
    read = Reader.open(path, longest, config.get("pad_token_id", 0), device)

    def hidden_states(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = read(texts)
        return model(ids, mask), mask

    return hidden_states, read.spans, read.lengths, longest - read.special


def load_encoder(path: Path, **options: Any) -> tuple[Any, Any]:
    """An encoder and its tokenizer by transformers, with options of `from_pretrained`.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    from hilora.base.models import quiet_loading, told_in_a_line

    with told_in_a_line(f"The embedder at {path} cannot be loaded", "Check its files."), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModel.from_pretrained(path, trust_remote_code=False, **options)
    return model, tokenizer


def _transformer(
    path: Path, config: dict[str, Any], longest: int | None, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any, Any, int]:
    model, tokenizer = load_encoder(path, dtype=dtype)
    model.eval().to(device)
    cut = longest or tokenizer.model_max_length

    def hidden_states(texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=cut, return_tensors="pt").to(device)
        return model(**tokens).last_hidden_state, tokens["attention_mask"]

    return hidden_states, _spans_by(tokenizer), None, cut - tokenizer.num_special_tokens_to_add()


def _spans_by(tokenizer: Any) -> Callable[[str], list[Span]] | None:
    """Spans by a tokenizer of transformers; None if it does not know them."""
    if not getattr(tokenizer, "is_fast", False):
        return None

    def spans(text: str) -> list[Span]:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(found["offset_mapping"])

    return spans


def sentence_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Whatever parts the folder names, run by sentence-transformers.

    Raises:
        ModelError: it is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"The embedder at {path} has parts that need sentence-transformers. Run: pip install 'hilora[embedders]'"
        ) from error
    model = SentenceTransformer(str(path), device=str(device), trust_remote_code=False).to(dtype)

    def encode(texts: list[str]) -> Tensor:
        vectors: Tensor = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return vectors

    tokenizer: Any = getattr(model, "tokenizer", None)  # parts of other kinds have others, or none
    longest = getattr(model, "max_seq_length", None)
    if (spans := _spans_by(tokenizer)) is None or longest is None:
        return Encoder(encode, None, UNBOUNDED)
    return Encoder(encode, spans, longest - tokenizer.num_special_tokens_to_add())
