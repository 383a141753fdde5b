"""Devices that are pretended: tensors say that they are there, the CPU holds their values, and to mix them fails.

    python -m tests.engine.pretended KIND          # one line for each thing that went wrong; none if all went well

What a card would refuse, a tensor on another device, is refused here, too, and what comes out can be compared. Room
for such devices is made once in a process: so this is a process of its own (`test_devices`).
"""

from __future__ import annotations

import copy
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests import conftest

NAME = "pretended"
FIRST, SECOND = f"{NAME}:0", f"{NAME}:1"
COPIES = ("aten::copy_", "aten::_foreach_copy_")
"""May be given tensors of several devices; so may whatever is told a device."""
ONE = {"": FIRST}
TWO = {
    "llama": {
        "model.embed_tokens": FIRST,
        "model.rotary_emb": FIRST,
        "model.layers.0": FIRST,
        "model.layers.1": SECOND,
        "model.norm": SECOND,
        "lm_head": FIRST,  # as where it is tied to the embedding
    },
    "t5": {
        "shared": FIRST,
        "encoder": FIRST,
        "decoder.embed_tokens": FIRST,
        "decoder.block.0": FIRST,
        "decoder.block.1": SECOND,
        "decoder.final_layer_norm": SECOND,
        "decoder.dropout": SECOND,
        "lm_head": FIRST,
    },
}
OPTIONS: list[dict[str, Any]] = [{}, {"do_sample": True}, {"num_beams": 2}]
PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211"]


class On(Tensor):
    """A tensor on a pretended device.

    Args:
        inner: its values.
        device: that it says to be on.
    """

    @staticmethod
    def __new__(cls, inner: Tensor, device: Any) -> On:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, inner: Tensor, device: Any) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Any:
        """By lists, too: PyTorch makes tensors of them without asking a mode."""
        places = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(p) if isinstance(p, list) else p for p in places))


class Pretend(TorchDispatchMode):
    """Makes tensors on pretended devices, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Do on the CPU what is asked of a device."""
    flat, _ = tree_flatten((args, kwargs))
    devices = {each.device for each in flat if isinstance(each, On)}
    host = [each for each in flat if isinstance(each, Tensor) and not isinstance(each, On) and each.ndim > 0]
    told = next((each for each in flat if isinstance(each, torch.device)), None)
    crosses = told is not None or func.name() in COPIES or (host and func.name().startswith("aten::index"))
    if not crosses and len(devices) + bool(devices and host) > 1:
        raise RuntimeError(f"{func.name()} of tensors on {sorted(map(str, devices))}{' and the CPU' * bool(host)}")
    made = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    where = told or (args[0].device if crosses and isinstance(args[0], On) else next(iter(devices), None))
    own = {id(each.inner): each for each in flat if isinstance(each, On)}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = own.get(id(value))
        if same is not None and same.device == where:
            return same
        value = value if same is None else value.clone()
        return value if where is None or where.type == "cpu" else On(value, where)

    return tree_map(back, made)


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, On) else value


def set_up() -> None:
    """Make this process know the devices, in every thread."""
    _setup_privateuseone_for_python_backend(NAME)  # type: ignore[no-untyped-call]
    plain_tensor, plain_run = torch.tensor, threading.Thread.run

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:  # PyTorch's own does not ask a mode
        made = plain_tensor(data, **options)
        return made if device is None or torch.device(device).type == "cpu" else On(made, torch.device(device))

    def run_in_mode(thread: threading.Thread) -> None:
        with Pretend():
            plain_run(thread)

    torch.tensor = tensor  # type: ignore[assignment]
    threading.Thread.run = run_in_mode  # type: ignore[method-assign]


def faults(kind: str) -> Iterator[str]:
    """What goes wrong with a model of a kind on one device, and on two."""
    from accelerate import dispatch_model

    from hilora import METHODS, HiLoRA, Planner, get_method
    from hilora.base import modules
    from hilora.engine import packed
    from hilora.engine.ahead import Ahead
    from hilora.pool.memory import Memory

    is_plain = modules.is_plain
    modules.is_plain = packed.is_plain = lambda weight: isinstance(weight.data, On) or is_plain(weight)
    conftest.TARGETS["llama"] = ["q_proj", "v_proj", "down_proj", "lm_head"]
    whole, embedder, tokenizer = conftest.tiny_model(kind), conftest.FakeEmbedder(), conftest.tiny_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        pool = conftest.make_pool(Path(folder) / "pool", kind, whole, embedder)
        for name, places in (("one device", ONE), ("two devices", TWO[kind])):
            with Pretend():
                spread = dispatch_model(
                    copy.deepcopy(whole), places, FIRST, force_hooks=True, skip_keys="past_key_values"
                )
            for method, form, ahead in [(m, "fast", False) for m in METHODS] + [
                ("hilora", "plain", False),
                ("hilora", "fast", True),
            ]:
                with Pretend():
                    there, here = (
                        HiLoRA(model, tokenizer, Planner(pool, get_method(method), embedder, Memory()), form=form)
                        for model in (spread, whole)
                    )
                    if ahead:
                        there.lanes.bank.ahead = Ahead(there.memory, there.lanes.bank.placements)
                    labels = list(conftest.WORDS) if method == "oracle" else None
                    for options in OPTIONS if method == "hilora" else OPTIONS[:1]:
                        try:
                            found, want = (
                                each.generate(PROMPTS, max_new_tokens=4, labels=labels, **options)
                                for each in (there, here)
                            )
                        except Exception as error:  # noqa: BLE001  # it is told
                            yield f"{name}, {method}, {form}, {options}: {error!r:.300}"
                            continue
                        if [each.text for each in found] != [each.text for each in want]:
                            yield f"{name}, {method}, {form}, {options}: other answers"
                    if there.batching != here.batching:
                        yield f"{name}: batches are {there.batching}, not {here.batching}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    set_up()
    print(*faults(sys.argv[1]), sep="\n", end="")
