"""What a module reads at a prompt's last token, as transformers says it, whatever runs beside; who has no base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.cli.app import app
from hilora.engine.attach import carrying
from hilora.engine.last_token import LastToken
from hilora.engine.thread import engine_of
from hilora.errors import InputError, ModelError
from hilora.gateway.parts import check_method

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "zzy xyz", "q"]
Shared = Callable[[str], tuple[Any, Pool]]
SITES = {
    "llama": ("model.layers.1", "model.layers.1.self_attn.q_proj"),
    "gpt2": ("transformer.h.1", "transformer.h.1.attn.c_attn"),
    "t5": ("encoder.block.1.layer.0", "encoder.block.1.layer.0.SelfAttention.q"),
}


@pytest.mark.parametrize("kind", SITES)
def test_a_block_reads_the_hidden_state_and_its_query_the_normed_one(
    kind: str, shared_pool: Shared, tokenizer: Any
) -> None:
    model, _ = shared_pool(kind)
    read = LastToken(model, tokenizer, engine_of(model, 0))
    block, site = SITES[kind]
    states, inputs = read(PROMPTS, block), read(PROMPTS, site)
    norm = {"llama": "input_layernorm", "gpt2": "ln_1", "t5": "layer_norm"}[kind]
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        reader = model.get_encoder() if kind == "t5" else model
        with torch.no_grad():
            hidden = reader(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]
            torch.testing.assert_close(states[row], hidden)
            torch.testing.assert_close(inputs[row], model.get_submodule(f"{block}.{norm}")(hidden))


def test_each_prompt_is_read_by_itself_and_equal_ones_once(
    shared_pool: Shared, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = shared_pool("llama")
    read, seen = LastToken(model, tokenizer, engine_of(model, 0)), list[int]()
    real = LastToken._read
    monkeypatch.setattr(LastToken, "_read", lambda self, ids, *rest: seen.append(len(ids)) or real(self, ids, *rest))
    together = read(PROMPTS, "model.layers.1")
    assert len(seen) == 4
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(read([prompt], "model.layers.1")[0], together[row])
    assert len(read([], "model.layers.1")) == 0
    assert not model.get_submodule("model.layers.1")._forward_pre_hooks


def test_what_cannot_be_read_is_said(shared_pool: Shared, tokenizer: Any) -> None:
    model, _ = shared_pool("t5")
    read = LastToken(model, tokenizer, engine_of(model, 0))
    with pytest.raises(ModelError, match="reads nothing"):
        read(["aaa"], "decoder.block.0.layer.0")
    with pytest.raises(ModelError, match=r"no module 'encoder\.blok'"):
        read(["aaa"], "encoder.blok")
    with carrying(model), pytest.raises(ModelError, match="already carries"):
        read(["aaa"], "encoder.block.0.layer.0")
    model, _ = shared_pool("llama")
    with pytest.raises(InputError, match="context of 256"):
        LastToken(model, tokenizer, engine_of(model, 0))(["a" * 256], "model.layers.1")


def test_logo_routes_alike_while_others_are_answered(shared_pool: Shared, tokenizer: Any, embedder: Any) -> None:
    model, pool = shared_pool("llama")
    alone = HiLoRA.from_pretrained(model, pool, "logo", tokenizer=tokenizer, embedder=embedder, k=2)
    want = [(a.text, a.choices) for a in alone.generate(PROMPTS, max_new_tokens=4)]
    other = HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=tokenizer, embedder=embedder)
    stream = other.stream("abab baab", max_new_tokens=12)
    next(stream)
    assert [(a.text, a.choices) for a in alone.generate(PROMPTS, max_new_tokens=4)] == want
    stream.close()
    assert all(len(choices) == 2 for _, choices in want)
    later = alone.over(Pool.open(pool.path))  # whose planner keeps the model
    assert [(a.text, a.choices) for a in later.generate(PROMPTS, max_new_tokens=4)] == want


def test_without_a_base_model_logo_is_refused_with_what_to_do(
    shared_pool: Shared, embedder: Any, tmp_path: Path
) -> None:
    _, pool = shared_pool("llama")
    planner = Planner(pool, get_method("logo"), embedder)
    with pytest.raises(
        InputError, match=r"logo routes by a pass of the base model.*got a planner alone.*hilora-plus"
    ):
        planner.route(["aaa"])
    with pytest.raises(InputError, match="got what routes for vLLM"):
        check_method(get_method("logo"), whole=True)
    assert check_method(get_method("lorauter"), whole=True).name == "lorauter"
    for command in (["route", "aaa"], ["explain", "aaa", "--out", str(tmp_path / "page.html")]):
        result = CliRunner().invoke(app, [*command, "--pool", str(pool.path), "-m", "logo"])
        assert result.exit_code != 0
        assert f"got hilora {command[0]}" in str(result.exception)
