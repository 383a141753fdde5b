"""Who is timed: hilora, the base model, and PEFT's ways to serve adapters, all on the same weights.

    base            the model alone
    hilora          each prompt routed (embedding included) among the adapters that it may use
    oracle          the same without routing: each prompt's own adapter, whole
    arrow           our Arrow over the adapters of the bench
    peft_single     PEFT, one unmerged adapter for all rows
    peft_mixed      PEFT, `adapter_names`: one adapter per row
    peft_arrow      PEFT's Arrow over the adapters of the bench

`oracle` and `peft_mixed` compute the same function, as do `arrow` and `peft_arrow`: their logits are compared before
anything is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hilora.bench.workload import Workload
from hilora.errors import InputError
from hilora.generate import HiLoRA
from hilora.methods import get_method
from hilora.padding import pad_batch
from hilora.planner import Planner
from hilora.pool.export import export_adapter
from hilora.pool.pool import Pool
from hilora.prompts import encode_prompts, pad_id
from hilora.route.embed import Embedder

CONTENDERS = ("base", "hilora", "oracle", "arrow", "peft_single", "peft_mixed", "peft_arrow")
TWINS = {("oracle", "peft_mixed"): 0.0, ("arrow", "peft_arrow"): 0.05}
"""Pairs that compute the same function -> how far apart they may be at least: PEFT finds Arrow's prototypes by 15
steps of power iteration, not exactly."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Largest mean difference of twins' logits, in standard deviations of the logits."""


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
    method: tuple[str, dict[str, Any]] = ("hilora", {})


@contextmanager
def contenders(stage: Stage, wanted: Sequence[str]) -> Iterator[list[Contender]]:
    """Build the wanted ones; PEFT's models are gone afterwards.

    Raises:
        InputError: one needs PEFT, which is not installed; or Arrow adapters of different ranks.
    """
    ours = {
        "base": lambda: _ours("base", stage, "base", {}),
        "hilora": lambda: _ours("hilora", stage, *stage.method, allow=[[name] for name in stage.work.adapters]),
        "oracle": lambda: _ours("oracle", stage, "oracle", {}, labels=list(stage.work.adapters)),
        "arrow": lambda: _ours("arrow", stage, "arrow", {}, allow=list(stage.names)),
    }
    with TemporaryDirectory(prefix="hilora-bench-") as folder:
        exported = _Exports(stage.pool, Path(folder), stage.model.dtype)
        theirs = {
            "peft_single": lambda: _peft_single(stage, exported),
            "peft_mixed": lambda: _peft_mixed(stage, exported),
            "peft_arrow": lambda: _peft_arrow(stage, exported),
        }
        yield [(ours | theirs)[name]() for name in wanted]


def check_twins(built: Sequence[Contender]) -> dict[str, float]:
    """Compare contenders that should compute the same.

    Returns:
        "one = other" -> mean absolute difference of their logits, in standard deviations.

    Raises:
        InputError: they do not.
    """
    by_name = {each.name: each for each in built}
    found = {}
    for (one, other), least in TWINS.items():
        if one in by_name and other in by_name:
            left, right = by_name[one].logits(), by_name[other].logits()
            gap = float((left.double() - right.double()).abs().mean() / right.double().std())
            limit = max(least, TOLERANCE.get(left.dtype, 0.15))
            if not gap <= limit:
                raise InputError(
                    f"{one} and {other} should compute the same, and differ by {gap:.3g} standard deviations "
                    f"(at most {limit:g} for {left.dtype}). Their times would mean nothing."
                )
            found[f"{one} = {other}"] = gap
    return found


def fixed(new_tokens: int) -> dict[str, Any]:
    """Generation options under which every contender does the same work."""
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}


def _ours(name: str, stage: Stage, method: str, options: dict[str, Any], **route: Any) -> Contender:
    planner = Planner(stage.pool, get_method(method, **options), stage.embedder)
    router = HiLoRA(stage.model, stage.tokenizer, planner, packed=True)
    prompts = list(stage.work.prompts)

    def run(new_tokens: int) -> object:
        return router.generate(prompts, batch_size=len(prompts), **fixed(new_tokens), **route)

    def logits() -> Tensor:
        routed = router.planner.route(prompts, **route)
        ids, mask = _padded(stage)
        with router.attached(routed, range(len(prompts))), torch.inference_mode():
            return _first_logits(stage.model, ids, mask)

    return Contender(name, run, logits)


def _padded(stage: Stage) -> tuple[Tensor, Tensor]:
    """The prompts' ids and mask; the bench knows decoders only."""
    encoded = encode_prompts(list(stage.work.prompts), stage.tokenizer)
    ids, mask = pad_batch(encoded, pad_id(stage.tokenizer), left=True)
    return ids.to(stage.model.device), mask.to(stage.model.device)


def _first_logits(model: Any, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    position = (mask.cumsum(1) - 1).clamp_min(0)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=position, **more).logits[:, -1]
    return logits


def _theirs(name: str, stage: Stage, model: Any, **more: Any) -> Contender:
    (ids, mask), fill = _padded(stage), pad_id(stage.tokenizer)

    def run(new_tokens: int) -> object:
        with torch.inference_mode():
            return model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                pad_token_id=fill,
                **fixed(new_tokens),
                **more,
            )

    def logits() -> Tensor:
        with torch.inference_mode():
            return _first_logits(model, ids, mask, **more)

    return Contender(name, run, logits)


class _Exports:
    """The pool's adapters as PEFT folders, each written when it is first needed."""

    def __init__(self, pool: Pool, folder: Path, dtype: torch.dtype) -> None:
        self.pool, self.folder, self.dtype = pool, folder, dtype

    def __call__(self, name: str) -> str:
        place = self.folder / self.alias(name)
        if not place.exists():
            export_adapter(self.pool, name, place, self.dtype)
        return str(place)

    def alias(self, name: str) -> str:
        """A name for PEFT, which makes modules of names: no dots."""
        return f"a{self.pool.index(name)}"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "The bench compares with PEFT, which is not installed. Run: pip install 'hilora[train]', "
            "or leave PEFT out: --contenders base,hilora"
        ) from error
    return peft


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PEFT's and transformers' warnings of each other's future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _loaded(stage: Stage, exported: _Exports, names: Sequence[str]) -> Any:
    plain = {"autocast_adapter_dtype": False}
    with _quiet():
        first = exported.alias(names[0])
        model = _peft().PeftModel.from_pretrained(stage.twin(), exported(names[0]), adapter_name=first, **plain)
        for name in names[1:]:
            model.load_adapter(exported(name), adapter_name=exported.alias(name), **plain)
    return model.eval()


def _peft_single(stage: Stage, exported: _Exports) -> Contender:
    return _theirs("peft_single", stage, _loaded(stage, exported, stage.work.distinct[:1]))


def _peft_mixed(stage: Stage, exported: _Exports) -> Contender:
    model = _loaded(stage, exported, stage.work.distinct)
    return _theirs("peft_mixed", stage, model, adapter_names=[exported.alias(name) for name in stage.work.adapters])


def _peft_arrow(stage: Stage, exported: _Exports) -> Contender:
    _peft()
    from peft.tuners.lora.arrow import create_arrow_model
    from peft.tuners.lora.config import ArrowConfig

    ranks = {stage.pool.entries[stage.pool.index(name)].rank for name in stage.names}
    if len(ranks) > 1:
        raise InputError(f"PEFT's Arrow needs adapters of one rank; got ranks {sorted(ranks)}.")
    paths = [exported(name) for name in stage.names]
    config = ArrowConfig(top_k=min(3, len(paths)), router_temperature=1.0, rng_seed=0)
    with _quiet():
        model = create_arrow_model(stage.twin(), paths, config, autocast_adapter_dtype=False)
    return _theirs("peft_arrow", stage, model.eval())
