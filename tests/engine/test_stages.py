"""Laws of stages: what counts tokens counts them over all stages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hilora import HiLoRA

END = 1
MOST = 12
PROMPTS = ["abab baab", "zzy", "mmnn onm noom"]


@pytest.fixture
def hasty(shared_pool: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> HiLoRA:
    """Over a model that would end every answer at once; stages are of 1, 2, 2, 2, 3 and 2 tokens."""
    model, pool = shared_pool("llama")
    model = copy.deepcopy(model)

    def ends(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(END), 1e6)

    model.get_output_embeddings().register_forward_hook(ends)
    monkeypatch.setattr("hilora.engine.stages.FIRST", 2)
    return HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=tokenizer, embedder=embedder)


@pytest.mark.parametrize("least", range(MOST + 1))
def test_an_answer_has_the_least_number_of_tokens_and_not_one_more(
    least: int, hasty: HiLoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasty.batching == "open"  # probed before stages are counted
    stages: list[int] = []
    original = hasty.model.generate

    def generate(**options: Any) -> Any:
        stages.append(options["max_new_tokens"])
        return original(**options)

    monkeypatch.setattr(hasty.model, "generate", generate)
    answers = hasty.generate(PROMPTS, max_new_tokens=MOST, min_new_tokens=least, eos_token_id=END)
    assert stages == [1, 2, 2, 2, 3, 2][: len(stages)]
    assert sum(stages[:-1]) <= least  # it went on as long as it had to
    for answer in answers:
        assert answer.completion_tokens == least
        assert answer.finish_reason == ("stop" if least < MOST else "length")
    monkeypatch.setattr(hasty.model.generation_config, "min_new_tokens", least)
    assert hasty.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=END) == answers
