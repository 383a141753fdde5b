"""PEFT's ways to serve adapters, on a base of their own: PEFT changes the models that it is given."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilora.base.prompts import pad_id
from hilora.bench.stage import Contender, Stage, first_logits, fixed, padded
from hilora.errors import InputError
from hilora.pool.export import export_adapter
from hilora.pool.pool import Pool


def _theirs(name: str, stage: Stage, model: Any, **more: Any) -> Contender:
    (ids, mask), fill = padded(stage), pad_id(stage.tokenizer)

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
            return first_logits(model, ids, mask, **more)

    return Contender(name, run, logits)


class Exports:
    """The pool's adapters as PEFT folders, each written when it is first needed."""

    def __init__(self, pool: Pool, folder: Path, dtype: torch.dtype) -> None:
        self.pool, self.folder, self.dtype = pool, folder, dtype

    def __call__(self, name: str) -> str:
        """Path of an adapter's folder."""
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


def _loaded(stage: Stage, exported: Exports, names: Sequence[str]) -> Any:
    plain = {"autocast_adapter_dtype": False}
    with _quiet():
        first = exported.alias(names[0])
        model = _peft().PeftModel.from_pretrained(stage.twin(), exported(names[0]), adapter_name=first, **plain)
        for name in names[1:]:
            model.load_adapter(exported(name), adapter_name=exported.alias(name), **plain)
    return model.eval()


def peft_single(stage: Stage, exported: Exports) -> Contender:
    """One unmerged adapter for all rows."""
    return _theirs("peft_single", stage, _loaded(stage, exported, stage.work.distinct[:1]))


def peft_mixed(stage: Stage, exported: Exports) -> Contender:
    """`adapter_names`: each row its own adapter."""
    model = _loaded(stage, exported, stage.work.distinct)
    return _theirs("peft_mixed", stage, model, adapter_names=[exported.alias(name) for name in stage.work.adapters])


def peft_arrow(stage: Stage, exported: Exports) -> Contender:
    """Arrow over the adapters of the bench."""
    _peft()
    from peft.tuners.lora.arrow import create_arrow_model
    from peft.tuners.lora.config import ArrowConfig

    ranks = {stage.pool.entries[stage.pool.index(name)].rank for name in stage.names}
    if len(ranks) > 1:
        raise InputError(f"PEFT's Arrow needs adapters of one rank; got ranks {sorted(ranks)}.")
    config = ArrowConfig(top_k=min(3, len(stage.names)), router_temperature=1.0, rng_seed=0)
    with _quiet():
        model = create_arrow_model(stage.twin(), [exported(stage.names[0])], config, autocast_adapter_dtype=False)
        _add_experts(model, stage, exported)
    return _theirs("peft_arrow", stage, model.eval())


def _add_experts(model: Any, stage: Stage, exported: Exports) -> None:
    """Put all other adapters straight into PEFT's layers and tell Arrow that they came.

    PEFT's own loading visits every module of the model, those of adapters included, several times for each adapter:
    a thousand take longer than a quarter of an hour.
    """
    layers = {
        name: module for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_arrow")
    }
    for name in stage.names[1:]:
        alias, entry = exported.alias(name), stage.pool.entries[stage.pool.index(name)]
        for site, factors in stage.pool.factors(entry.hash).items():
            layer = layers[site]
            for held, factor in zip((layer.lora_A, layer.lora_B), factors, strict=True):
                out, width = factor.shape
                held[alias] = torch.nn.Linear(width, out, bias=False, device="meta")
                held[alias].weight = torch.nn.Parameter(factor.to(layer.weight), requires_grad=False)
            layer.scaling[alias] = 1.0
    for layer in layers.values():
        for arrow in layer.lora_arrow.values():
            arrow.on_adapter_change(layer.lora_A, layer.lora_B)
