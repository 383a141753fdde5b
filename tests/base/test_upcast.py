"""A half-precision model in fp32 computes what an fp32 copy of it does, and gets its weights back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from hilora.base.upcast import HALF, in_fp32, is_half

WIDE = {"vocab_size": 60, "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "plain": lambda: tf.LlamaConfig(**WIDE, **HEADS),
    "tied": lambda: tf.LlamaConfig(**WIDE, **HEADS, tie_word_embeddings=True),
    "hybrid": lambda: tf.Qwen3_5TextConfig(**WIDE, **HEADS, **LINEAR),
    "states": lambda: tf.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4),
    "encoder": lambda: tf.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
}


def made(kind: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    config = CONFIGS[kind]()
    torch.manual_seed(0)
    auto = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    return auto.from_config(config).to(dtype).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 4, 11]])
    given = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model(input_ids=ids, **given).logits
    return found


@pytest.mark.parametrize("room", [0, 10_000, 2**30])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", CONFIGS)
def test_it_computes_what_an_fp32_copy_does(kind: str, dtype: torch.dtype, room: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.base.upcast.ROOM", room)
    model = made(kind, dtype)
    expected = logits(copy.deepcopy(model).float())
    with in_fp32(model):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model).float(), expected)


@pytest.mark.parametrize("room", [0, 2**30])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_weight_is_itself_afterwards(kind: str, room: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.base.upcast.ROOM", room)
    model = made(kind)
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    before = {name: (value, value.data_ptr(), value.clone()) for name, value in own}
    deepest = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)[-1]

    def fail(*_: Any) -> None:
        raise RuntimeError("halfway")

    with in_fp32(model), deepest.register_forward_hook(fail), pytest.raises(RuntimeError, match="halfway"):
        logits(model)
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in own:
        kept, place, bits = before.pop(name)
        assert value is kept
        assert value.data_ptr() == place
        assert torch.equal(value, bits)
    assert not before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_one_block_at_a_time_is_in_fp32(monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.base.upcast.ROOM", 0)
    model, seen = made("hybrid"), []

    def look(module: nn.Module, *_: Any) -> None:
        seen.append([place for place, layer in enumerate(model.model.layers) if not is_half(layer)])

    with in_fp32(model):
        for layer in model.model.layers:
            layer.mlp.register_forward_hook(look)
        logits(model)
    assert seen == [[0], [1], [2]]


class Coded(Tensor):
    """Codes of a quantised weight that say they were floats."""


def test_weights_that_cannot_be_cast_are_refused() -> None:
    quantised, coded, offloaded = made("plain"), made("plain"), made("plain").to("meta")
    quantised.model.norm.weight = nn.Parameter(torch.ones(16, dtype=torch.int8), requires_grad=False)
    coded.model.norm.weight = nn.Parameter(torch.ones(16).as_subclass(Coded), requires_grad=False)
    for model, why in ((quantised, "quantised"), (coded, "quantised"), (offloaded, "offloaded")):
        with pytest.raises(NotImplementedError, match=why), in_fp32(model):
            pass
    assert is_half(quantised)
    assert not is_half(made("plain", torch.float32))
