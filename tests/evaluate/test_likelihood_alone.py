"""Scores of a base on which padding changes what a row gives are those of each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hilora import HiLoRA, Pool
from hilora.base.embed import describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.evaluate.likelihood import encode_pairs, score, unrouted


def test_scores_do_not_depend_on_the_batch_where_padding_would_change_them(tmp_path: Path, tiny: Any) -> None:
    torch.manual_seed(0)
    config = tf.BartConfig(
        **{"vocab_size": 99, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
        **{"is_decoder": True, "is_encoder_decoder": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
    )
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    base = describe_model("tiny", model, tiny.tokenizer())
    pool = Pool.create(tmp_path / "pool", base, describe_embedder(tiny.embedder()))
    router = HiLoRA.from_pretrained(model, pool, "base", tokenizer=tiny.tokenizer(), embedder=tiny.embedder())
    assert router.batching == "alone"
    contexts = ["abab baab abba aaa", "zzy", "mm"]
    items = encode_pairs(router, [(context, " xyz") for context in contexts], contexts)

    def scores(size: int) -> list[float]:
        found = {}
        for batch in score(router, unrouted(router), items, batch_size=size):
            found |= batch
        return [found[place][0] for place in range(len(items))]

    assert scores(3) == pytest.approx(scores(1), abs=1e-4)
