"""Laws of devices: no tensor meets one of another device, and where a model lies changes no answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from transformers import AutoModelForCausalLM

from hilora import HiLoRA
from hilora.engine import lanes
from hilora.errors import ModelError

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="a PyTorch before 2.10"
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_on_a_device_or_spread_over_two_answers_as_on_the_cpu(kind: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.engine.pretended", kind],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout == ""


PLACES = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")


def offloaded(model: Any, folder: Path, part: str) -> Any:
    """A model as it is loaded with a part of it on the disk."""
    model.save_pretrained(folder / "base")
    places = {name: "disk" if name == part else "cpu" for name in PLACES}
    return AutoModelForCausalLM.from_pretrained(
        folder / "base", device_map=places, offload_folder=folder / "disk", dtype=model.dtype
    ).eval()


def test_layers_on_the_disk_take_adapters(
    shared_pool: Callable[[str], tuple[Any, Any]], tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    whole, pool = shared_pool("llama")
    partly = offloaded(whole, tmp_path, "model.layers.1")
    assert partly.model.layers[1].mlp.down_proj.weight.is_meta
    found, want = (
        HiLoRA.from_pretrained(model, pool, "hilora-gs", tokenizer=tokenizer, embedder=embedder).generate(
            ["abab baab abba aaa", "zzy xyz"], max_new_tokens=4
        )
        for model in (partly, whole)
    )
    assert found == want


def test_a_model_that_does_not_know_where_prompts_go_is_refused(
    shared_pool: Callable[[str], tuple[Any, Any]], tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    whole, pool = shared_pool("llama")
    partly = offloaded(whole, tmp_path, "model.embed_tokens")
    with pytest.raises(ModelError, match="embedding is offloaded"):
        HiLoRA.from_pretrained(partly, pool, "hilora-gs", tokenizer=tokenizer, embedder=embedder)


def test_no_device_gets_more_keys_and_values_than_half_of_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {torch.device("cuda", 0): 80, torch.device("cuda", 1): 20}
    monkeypatch.setattr(lanes, "_free", free.get)
    first, second = ((where, torch.float32) for where in free)
    assert lanes.spare_memory({"a": first, "b": first}) == 40
    assert lanes.spare_memory({"a": first, "b": first, "c": first, "d": second}) == 40  # 10 of them on the second
    assert lanes.spare_memory({"a": first, "b": second}) == 20
