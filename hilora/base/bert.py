"""A BERT encoder in plain torch: the default embedder without importing transformers, which takes seconds.

Attention, feed-forward and norms as in Devlin et al. 2019, with the weights' own names; the tokenizer is that of
`tokenizer.json`. Anything that this does not know goes to transformers (`embed`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hilora.base.devices import send

Linear = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out)."""
Norm = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """One block: queries, keys and values in one projection."""

    qkv: Linear
    mix: Linear
    mix_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


@dataclass(frozen=True)
class Bert:
    """An encoder.

    Attributes:
        words: (token, dim) word embeddings, and `places` (position, dim) position embeddings, type 0 added.
        norm: of their sum.
        layers: the blocks.
        heads: attention heads of a block.
        eps: of the norms.
    """

    words: Float[Tensor, "vocabulary dim"]
    places: Float[Tensor, "position dim"]
    norm: Norm
    layers: Sequence[Layer]
    heads: int
    eps: float

    def __call__(self, ids: Int[Tensor, "text seq"], mask: Bool[Tensor, "text seq"]) -> Float[Tensor, "text seq dim"]:
        """The last layer's hidden states; positions where the mask is False are not looked at."""
        count, length = ids.shape
        x = self._norm(self.words[ids] + self.places[:length], self.norm)
        whole = mask.device.type == "cpu" and bool(mask.all())  # a card would be waited for
        seen = None if whole else mask[:, None, None]
        for layer in self.layers:
            q, k, v = F.linear(x, *layer.qkv).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = attend(q, k, v, seen).transpose(1, 2).reshape(count, length, -1)
            x = self._norm(x + F.linear(mixed, *layer.mix), layer.mix_norm)
            x = self._norm(x + F.linear(F.gelu(F.linear(x, *layer.up)), *layer.down), layer.down_norm)
        return x

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, self.eps)


Heads = Float[Tensor, "text head seq dim"]


def attend(q: Heads, k: Heads, v: Heads, seen: Bool[Tensor, "text 1 1 seq"] | None) -> Heads:
    """softmax(q k^T / sqrt(dim)) v, step by step on a CPU: with heads this small its fused kernel takes longer."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed


def can_read(path: Path, config: dict[str, Any]) -> bool:
    """Whether the model in a folder is such an encoder."""
    wanted = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False, "position_embedding_type": "absolute"}
    if "model_type" not in config or any(config.get(key, value) != value for key, value in wanted.items()):
        return False
    try:
        with safe_open(path / "model.safetensors", framework="pt") as file:
            names = {name.removeprefix("bert.") for name in file.keys()}  # noqa: SIM118  (no mapping)
        normalizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"] or {}
        flags = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, SafetensorError):
        return False
    lower = normalizer.get("lowercase")
    same = lower is None or flags.get("do_lower_case", lower) == lower  # else transformers changes the tokenizer
    last = f"encoder.layer.{config.get('num_hidden_layers', 0) - 1}.output.LayerNorm.bias"
    return same and {"embeddings.word_embeddings.weight", last} <= names


def read_bert(path: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype = torch.float32) -> Bert:
    """The encoder in a folder."""
    loaded = load_file(path / "model.safetensors", device=str(device))
    tensors = {name.removeprefix("bert."): tensor.to(dtype) for name, tensor in loaded.items()}

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def layer(at: str) -> Layer:
        attention = [pair(f"{at}.attention.self.{name}") for name in ("query", "key", "value")]
        weights, biases = zip(*attention, strict=True)
        return Layer(
            (torch.cat(weights), torch.cat(biases)),
            pair(f"{at}.attention.output.dense"),
            pair(f"{at}.attention.output.LayerNorm"),
            pair(f"{at}.intermediate.dense"),
            pair(f"{at}.output.dense"),
            pair(f"{at}.output.LayerNorm"),
        )

    return Bert(
        tensors["embeddings.word_embeddings.weight"],
        tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0],
        pair("embeddings.LayerNorm"),
        [layer(f"encoder.layer.{i}") for i in range(config["num_hidden_layers"])],
        config["num_attention_heads"],
        config.get("layer_norm_eps", 1e-12),
    )


@dataclass(frozen=True)
class Reader:
    """Texts to padded token ids, cut at `longest`."""

    tokenizer: Any
    device: torch.device

    @classmethod
    def open(cls, path: Path, longest: int, pad: int, device: torch.device) -> Reader:
        """The tokenizer in a folder."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.enable_truncation(longest)
        tokenizer.enable_padding(pad_id=pad)
        return cls(tokenizer, device)

    def __call__(self, texts: list[str]) -> tuple[Int[Tensor, "text seq"], Bool[Tensor, "text seq"]]:
        """Token ids, and which of them are not padding."""
        found = self.tokenizer.encode_batch(texts)
        ids, mask = send(torch.tensor([[e.ids for e in found], [e.attention_mask for e in found]]), self.device)
        return ids, mask.bool()

    @property
    def special(self) -> int:
        """Tokens that are added to each text."""
        return int(self.tokenizer.num_special_tokens_to_add(is_pair=False))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as `spans` has them; all texts are read at once."""
        found = self.tokenizer.encode_batch(list(texts))
        return [sum(part.special_tokens_mask.count(0) for part in (each, *each.overflowing)) for each in found]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text begins and ends in it, of those beyond `longest`, too; special ones left out."""
        first = self.tokenizer.encode(text)
        parts = [zip(part.offsets, part.special_tokens_mask, strict=True) for part in (first, *first.overflowing)]
        return [span for part in parts for span, special in part if not special]
