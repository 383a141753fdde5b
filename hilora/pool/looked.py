"""What a pool keeps of an adapter's samples: their embeddings and, if it may, their hashed n-grams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hilora.base.embed import EmbedderInfo
from hilora.errors import MismatchError
from hilora.route.features import Features, check_samples, hash_terms

Embed = Callable[[Sequence[str]], Tensor]
"""Texts -> (text, dim)."""


def look_at(name: str, samples: Sequence[str], embed: Embed, embedder: EmbedderInfo, *, terms: bool) -> Features:
    """Embed samples, and hash their terms.

    Args:
        name: the adapter's.
        samples: texts; empty ones are left out.
        embed: texts -> (text, dim).
        embedder: what the pool records of it.
        terms: whether to keep hashed n-grams.

    Raises:
        MismatchError: embeddings are not of the embedder's shape.
        InputError: too few samples, or embeddings that are no numbers.
    """
    texts = [text for text in samples if text.strip()]
    vectors = embed(texts).float().cpu().contiguous() if texts else torch.empty(0, embedder.dim)
    if vectors.ndim != 2 or vectors.shape[1] != embedder.dim:
        raise MismatchError(
            f"Embeddings have shape {tuple(vectors.shape)}; this pool's embedder {embedder.name!r} has "
            f"dim {embedder.dim}. Embed with it, or run: hilora pool reembed"
        )
    check_samples(vectors, name)
    return Features(vectors, hash_terms(texts) if terms else None)
