"""Training one adapter: the loss is the completions' own, the base stays as it was, runs resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hilora.base.modules import linear_shapes
from hilora.errors import InputError, ModelError
from hilora.pool.peft import read_adapter
from hilora.pool.source import read_samples
from hilora.train.data import completion_loss, encode_examples, read_lines
from hilora.train.lora import train_lora
from hilora.train.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ROWS = [{"inputs": f"say {w}", "targets": w} for w in ("one", "two", "three", "four", "five", "six")]
RECIPE = Recipe(targets=("q_proj", "v_proj"), rank=2, alpha=4, steps=8, batch=3, lr=0.05, num_samples=4)


def train(out: Path, model: Any, tokenizer: Any, recipe: Recipe = RECIPE, **options: Any) -> Path:
    return train_lora(ROWS, out, model=model, tokenizer=tokenizer, base_name="tiny", recipe=recipe, **options)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_the_loss_is_the_mean_over_completion_tokens(kind: str, tiny: Any, tokenizer: Any) -> None:
    model = tiny.model(kind)
    examples = encode_examples(ROWS, tokenizer)
    got = completion_loss(model, examples, tokenizer.pad_token_id)
    total, count = 0.0, 0
    model.requires_grad_(False)
    for example in examples:
        if kind == "t5":
            ids, labels = torch.tensor([example.prompt]), torch.tensor([example.completion])
            scores = model(input_ids=ids, labels=labels).logits[0]
        else:
            ids = torch.tensor([example.prompt + example.completion])
            scores = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        for token, row in zip(example.completion, scores, strict=True):
            total -= float(torch.log_softmax(row, 0)[token])
            count += 1
    assert float(got.detach()) == pytest.approx(total / count, rel=1e-4)


def test_training_lowers_the_loss_and_leaves_the_base_alone(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses: list[float] = []
    recipe = Recipe(**{**RECIPE.__dict__, "steps": 100, "targets": ("q_proj", "v_proj", "down_proj"), "rank": 4})
    train(tmp_path / "a", model, tokenizer, recipe, on_step=lambda step, loss, speed: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert before.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_no_second_run_makes_the_same_adapter_meanwhile(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    told: list[str] = []

    def meanwhile(step: int, loss: float, speed: float) -> None:
        with pytest.raises(InputError, match="Another run is writing") as caught:
            train(tmp_path / "a", tiny.model("llama", torch.float32), tokenizer)
        told.append(str(caught.value))

    train(tmp_path / "a", tiny.model("llama", torch.float32), tokenizer, on_step=meanwhile)
    assert len(told) == RECIPE.steps
    with pytest.raises(InputError, match="exists"):
        train(tmp_path / "a", tiny.model("llama", torch.float32), tokenizer)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("v_proj",), ("layers.1.self_attn.v_proj",)])
def test_no_rank_is_above_that_of_the_smallest_module(
    targets: tuple[str, ...], tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama", torch.float32)  # its v_proj has 8 outputs, its q_proj 16
    recipe = {"targets": targets, "steps": 1, "max_tokens": 64}
    train(tmp_path / "most", model, tokenizer, Recipe(rank=8, **recipe))

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("memory was taken")

    monkeypatch.setattr("peft.get_peft_model", refuse)
    for rank in (9, 10**12):
        with pytest.raises(InputError, match=rf"rank of {rank} .*v_proj can have, which is 8.*--rank"):
            train(tmp_path / "a", model, tokenizer, Recipe(rank=rank, **recipe))
    assert not list(tmp_path.glob("a*"))


def test_what_is_written_is_an_adapter_with_samples_and_its_recipe(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float32)
    out = train(tmp_path / "a", model, tokenizer)
    adapter = read_adapter(out, name="a", sites=linear_shapes(model))
    assert adapter.rank == 2
    assert len(adapter.factors) == 4
    samples = read_samples(out / "samples.jsonl")
    assert len(samples) == 4
    assert set(samples) <= {row["inputs"] for row in ROWS}
    assert json.loads((out / "recipe.json").read_text())["steps"] == 8
    assert len((out / "training.jsonl").read_text().splitlines()) == 8
    assert not (tmp_path / "a.training").exists()


def test_an_interrupted_run_resumes_to_the_same_adapter(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float32)
    whole = train(tmp_path / "whole", model, tokenizer, checkpoint_every=3)

    def stop(step: int, loss: float, speed: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", model, tokenizer, checkpoint_every=3, on_step=stop)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(InputError, match="another recipe"):
        train(tmp_path / "cut", model, tokenizer, Recipe(**{**RECIPE.__dict__, "lr": 0.1}))
    seen: list[int] = []
    cut = train(tmp_path / "cut", model, tokenizer, checkpoint_every=3, on_step=lambda s, *_: seen.append(s))
    assert seen == [4, 5, 6, 7, 8]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_bad_training_input_is_refused_before_anything_is_written(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float32)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        train(tmp_path / "there", model, tokenizer)
    with pytest.raises(InputError, match="--max-tokens"):
        train(tmp_path / "a", model, tokenizer, Recipe(max_tokens=2))
    with pytest.raises(ModelError, match=r"no modules named 'nothing'.*--target.*k_proj, lm_head, o_proj, q_proj"):
        train(tmp_path / "a", model, tokenizer, Recipe(targets=("q_proj", "nothing"), max_tokens=64))
    with pytest.raises(ModelError, match=r"'q_proj'.*--target with some of: c_attn, c_fc, c_proj, lm_head"):
        train(tmp_path / "a", tiny.model("gpt2", torch.float32), tokenizer, Recipe(max_tokens=64))
    assert not list(tmp_path.glob("a*"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"inputs": "x", "targets": "y"}\n{"inputs": "x"}\n')
    with pytest.raises(InputError, match="line 2"):
        read_lines(bad)
    bad.write_text("\n")
    with pytest.raises(InputError, match="no training lines"):
        read_lines(bad)
    with pytest.raises(InputError, match="Cannot read"):
        read_lines(tmp_path / "missing.jsonl")
    assert not (tmp_path / "a").exists()
