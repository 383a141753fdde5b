"""Answers on a card are those of the CPU, in fp32. Runs wherever a card is; `benchmarks/gpu.py` asks the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hilora import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture
def equal(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from gpuing import equal

    return equal


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2", "t5"])
def test_every_method_answers_as_on_the_cpu(kind: str, equal: Any, tiny: Any, tmp_path: Path) -> None:
    _, wrong = equal.differences(equal.pair_of(tiny, kind, tmp_path, "cuda"), METHODS)
    assert wrong == []


def test_an_embedder_that_lives_on_the_card_routes_as_on_the_cpu(equal: Any, tiny: Any, tmp_path: Path) -> None:
    _, wrong = equal.differences(equal.embedded_pair(tiny, tmp_path, "cuda"), ["hilora", "hilora-plus", "mixture"])
    assert wrong == []


@pytest.mark.parametrize("method", ["base", "hilora", "hilora-plus", "mixture", "arrow"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_compiled_step_answers_as_on_the_cpu(
    kind: str, method: str, equal: Any, tiny: Any, tmp_path: Path
) -> None:
    _, wrong = equal.compiled_differences(equal.pair_of(tiny, kind, tmp_path, "cuda"), method)
    assert wrong == []
