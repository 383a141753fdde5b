"""Who is timed: transformers' own generation, hilora in several ways, PEFT; and one plain LoRA inside the model.

transformers    the base, as transformers runs it: `model.generate`
base            the base by hilora's engine: rows without an adapter
hilora          every prompt embedded and routed freely among the pool's adapters
routed          the same batch, embedded and routed already
pinned          embedded and routed, but that a prompt may use its own adapter only
oracle          not routed: each prompt's own adapter, whole
plain           one LoRA for all rows, as a module of its own in place of each linear one, by hilora's engine
peft_single     PEFT, one unmerged adapter for all rows
peft_mixed      PEFT, `adapter_names`: one adapter per row
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from gpuing.room import Room
from hilora import HiLoRA
from hilora.base.padding import pad_batch
from hilora.base.prompts import encode_prompts, pad_id
from hilora.bench.stage import Contender, Stage, first_logits, fixed
from hilora.bench.theirs import Exports, peft_mixed, peft_single
from hilora.bench.workload import Workload
from hilora.pool.view import PoolView
from hilora.types import Factors

PEFT = ("peft_single", "peft_mixed")


class Plain(nn.Linear):
    """A linear module with one LoRA of its own."""

    @classmethod
    def of(cls, module: nn.Linear, down: Tensor, up: Tensor) -> Plain:
        """In place of a module, whose weight it shares; down (rank, in), up (out, rank)."""
        with torch.device("meta"):
            found = cls(module.in_features, module.out_features, module.bias is not None)
        found.weight, found.bias = module.weight, module.bias
        found.down, found.up = (nn.Parameter(f.to(module.weight), requires_grad=False) for f in (down, up))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The module's output, and what the LoRA adds."""
        output = nn.functional.linear(x, self.weight, self.bias)
        return output + nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def with_lora(model: Any, factors: Factors) -> Any:
    """A model whose modules have one LoRA inside."""
    for site, (down, up) in factors.items():
        parent, _, own = site.rpartition(".")
        setattr(model.get_submodule(parent), own, Plain.of(model.get_submodule(site), down, up))
    return model


def missing(name: str) -> str:
    """Why a contender cannot be there; "" if it can."""
    return "PEFT is not installed" if name in PEFT and importlib.util.find_spec("peft") is None else ""


@contextmanager
def contenders(room: Room, pool: PoolView, work: Workload, wanted: Sequence[str]) -> Iterator[list[Contender]]:
    """Build those that can be; PEFT's models are gone afterwards."""
    with TemporaryDirectory(dir=room.folder) as folder:
        stage: Any = None
        made: list[Contender] = []
        for name in (name for name in wanted if not missing(name)):
            if name in PEFT:
                stage = stage or _stage(room, pool, work)
                build = peft_single if name == "peft_single" else peft_mixed
                made.append(build(stage, Exports(pool, Path(folder) / name, stage.model.dtype)))
            elif name == "transformers":
                made.append(by_transformers(name, room, room.twin(), work))
            else:
                made.append(by_hilora(name, room, pool, work))
        yield made


def _stage(room: Room, pool: Any, work: Workload) -> Stage:
    names = sorted(pool.names)
    return Stage(room.pristine, room.tokenizer, room.embedder, pool, room.twin, names, work, ("hilora", {}))


def read(model: Any, tokenizer: Any, work: Workload) -> tuple[Tensor, Tensor]:
    """Ids and mask of the prompts, where a model is."""
    ids, mask = pad_batch(encode_prompts(list(work.prompts), tokenizer), pad_id(tokenizer), left=True)
    return ids.to(model.device), mask.to(model.device)


def by_transformers(name: str, room: Room, model: Any, work: Workload, **options: Any) -> Contender:
    """`model.generate`, greedy."""
    (ids, mask), fill = read(model, room.tokenizer, work), pad_id(room.tokenizer)

    def run(new_tokens: int) -> object:
        with nullcontext() if options else torch.inference_mode():  # a static cache is kept, and compiled for
            return model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=fill, **fixed(new_tokens), **options
            )

    return Contender(name, run, torch.no_grad()(partial(first_logits, model, ids, mask)))


METHOD = {"base": "base", "plain": "base", "oracle": "oracle"}
"""Of contenders; the others' is hilora."""


def by_hilora(
    name: str,
    room: Room,
    pool: PoolView,
    work: Workload,
    router: HiLoRA | None = None,
    method: str | None = None,
    bare: bool = False,
) -> Contender:
    """A contender of hilora's engine.

    Args:
        name: as above, or anything else for a method that routes freely.
        room, pool, work: what it answers.
        router: whose model it is; default: one of its own on the eager model.
        method: default: by the name.
        bare: no prompt may use an adapter.
    """
    if router is None:
        model = with_lora(room.twin(), pool.factors(pool.entries[0].hash)) if name == "plain" else None
        router = room.router(method or METHOD.get(name, "hilora"), pool, model)
    prompts, rows = list(work.prompts), range(len(work.prompts))
    asked: dict[str, Any] = {}
    if bare:
        asked["allow"] = [[] for _ in prompts]
    elif name == "pinned":
        asked["allow"] = [[own] for own in work.adapters]
    elif name == "oracle":
        asked["labels"] = list(work.adapters)

    def run(new_tokens: int) -> object:
        return router.generate(prompts, batch_size=len(prompts), **fixed(new_tokens), **asked)

    def logits() -> Tensor:
        routed, (ids, mask) = router.planner.route(prompts, **asked), read(router.model, router.tokenizer, work)
        with router.attached(routed, rows), torch.inference_mode():
            return first_logits(router.model, ids, mask)

    if name == "routed":
        run = routed_run(router, prompts)
    return Contender(name, run, logits)


def routed_run(router: HiLoRA, prompts: Sequence[str]) -> Callable[[int], object]:
    """Answers of prompts that are routed beforehand."""
    routed, rows = router.planner.route(list(prompts)), range(len(prompts))
    encoded = encode_prompts(list(prompts), router.tokenizer)
    return lambda new_tokens: router.answer_batch(routed, rows, encoded, **fixed(new_tokens))
