"""Laws of `min_new_tokens`: an answer that would end at once has as many tokens as it has to, and not one more."""

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
def hasty(shared_pool: Any, tokenizer: Any, embedder: Any) -> HiLoRA:
    """Over a model that would end every answer at once."""
    model, pool = shared_pool("llama")
    model = copy.deepcopy(model)

    def ends(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(END), 1e6)

    model.get_output_embeddings().register_forward_hook(ends)
    return HiLoRA.from_pretrained(model, pool, "hilora", tokenizer=tokenizer, embedder=embedder)


@pytest.mark.parametrize("least", range(MOST + 1))
@pytest.mark.parametrize("closed", [False, True])
def test_an_answer_has_the_least_number_of_tokens_and_not_one_more(
    least: int, closed: bool, hasty: HiLoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"logits_processor": [lambda ids, scores: scores]} if closed else {}
    answers = hasty.generate(PROMPTS, max_new_tokens=MOST, min_new_tokens=least, eos_token_id=END, **options)
    for answer in answers:
        assert answer.completion_tokens == least
        assert answer.finish_reason == ("stop" if least < MOST else "length")
    monkeypatch.setattr(hasty.model.generation_config, "min_new_tokens", least)
    assert hasty.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=END, **options) == answers
