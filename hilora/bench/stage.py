"""What contenders are and what they share, whoever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from hilora.base.embed import Embedder
from hilora.base.padding import pad_batch
from hilora.base.prompts import encode_prompts, pad_id
from hilora.bench.workload import Workload
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.pool.pool import Pool


@dataclass(frozen=True)
class Contender:
    """Something that answers the workload.

    Attributes:
        run: answers, with so many new tokens for each prompt.
        logits: (batch, vocabulary) of the first new token.
    """

    name: str
    run: Callable[[int], object]
    logits: Callable[[], Tensor]


@dataclass(frozen=True)
class Stage:
    """What contenders share.

    Attributes:
        model, tokenizer, embedder, pool: as for `HiLoRA`; `twin()` loads the base once more, for PEFT to change.
        names: the adapters that Arrow looks at; those of the workload are among them.
        work: what to answer.
        method: hilora's, with its options.
    """

    model: Any
    tokenizer: Any
    embedder: Embedder
    pool: Pool
    twin: Callable[[], Any]
    names: Sequence[str]
    work: Workload
    method: tuple[str, dict[str, Any]]

    @cached_property
    def planner(self) -> Planner:
        """Routes by hilora's method; fitted once for all who do."""
        method, options = self.method
        return self.planner_of(method, **options)

    def planner_of(self, method: str, **options: Any) -> Planner:
        """Routes over the pool by a method."""
        return Planner(self.pool, get_method(method, **options), self.embedder)


def fixed(new_tokens: int) -> dict[str, Any]:
    """Generation options under which every contender does the same work."""
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}


def padded(stage: Stage) -> tuple[Tensor, Tensor]:
    """The prompts' ids and mask; the bench knows decoders only."""
    encoded = encode_prompts(list(stage.work.prompts), stage.tokenizer)
    ids, mask = pad_batch(encoded, pad_id(stage.tokenizer), left=True)
    return ids.to(stage.model.device), mask.to(stage.model.device)


def first_logits(model: Any, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    """(batch, vocabulary) of the first new token."""
    position = (mask.cumsum(1) - 1).clamp_min(0)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=position, **more).logits[:, -1]
    return logits
