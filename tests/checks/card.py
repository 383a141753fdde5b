"""A CUDA device played on the CPU: tensors that say they lie on one, hold real numbers, and refuse strangers.

Where a card would refuse to compute with a tensor of the CPU, this does; where whoever asks would wait for the card,
it counts. What is no PyTorch operation (numpy, triton) sees no numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
GHOST = "meta"
"""What PyTorch's own code takes the card for: without CUDA it knows nothing of such devices."""
aten = torch.ops.aten
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
"""Operations whose result the CPU has to know."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
"""A card takes indices of the CPU, and makes whoever gives them wait."""


class OnCard(torch.Tensor):
    """A tensor that says it lies on a card."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=GHOST
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the played card")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says to lie."""
        return CUDA

    def tolist(self) -> Any:
        """As PyTorch does it, which knows no tensors but its own."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """What numpy cannot read."""
        raise TypeError("can't convert a tensor of a card to numpy")

    def __repr__(self, **_: Any) -> str:
        return f"OnCard{tuple(self.shape)}"


class Card(TorchDispatchMode):
    """What is done on the card; `waits` counts why the CPU waited for it, `did` all that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.did = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        cards = [each for each in given if isinstance(each, OnCard)]
        asked = kwargs.get("device")
        on_card = bool(cards) if asked is None else torch.device(asked).type in ("cuda", GHOST)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if name in ("_to_copy", "copy_"):
            if not on_card and cards:
                self.waits["to the CPU"] += 1
            elif on_card and not all(isinstance(each, OnCard) or not each.dim() for each in given):
                self.waits["to the card"] += not (
                    kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
                )
        elif cards:
            self._check(func, name, args, given)
        self.did[name] += on_card
        if name == "_fused_sdp_choice":
            return 0  # the products themselves, which both have
        inner = {id(each.inner): each for each in cards}
        plain = tree_map(lambda each: each.inner if isinstance(each, OnCard) else each, (args, kwargs))
        found = func(*plain[0], **plain[1])

        def back(each: Any) -> Any:
            if not isinstance(each, torch.Tensor) or not on_card:
                return each
            return inner.get(id(each)) if id(each) in inner else OnCard(each)

        return tree_map(back, found)

    def _check(self, func: Any, name: str, args: Any, given: list[torch.Tensor]) -> None:
        if name in WAITS:
            self.waits[name] += 1
        strangers = [each for each in given if not isinstance(each, OnCard) and each.dim()]
        if name in INDEXED and isinstance(args[0], OnCard):
            indices = [id(each) for each in args[1] if isinstance(each, torch.Tensor)]
            self.waits["indices"] += any(id(each) in indices for each in strangers)
            strangers = [each for each in strangers if id(each) not in indices]
        if strangers:
            raise RuntimeError(
                f"{func}: tensors of the CPU {[tuple(each.shape) for each in strangers]} and of a card"
            )


def tensor(*args: Any, _made: Any = torch.tensor, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor`, which would copy behind everybody's back."""
    where = kwargs.pop("device", None)
    found: torch.Tensor = _made(*args, **kwargs)
    return found if where is None or torch.device(where).type == "cpu" else found.to(where)


@contextmanager
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A card that is there while this is open."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be wrapped
    with torch.no_grad(), Card() as card:
        yield card
