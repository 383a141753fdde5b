"""Between the CPU and a card: what is copied there, and what stays there, with nobody waiting that need not."""

from __future__ import annotations

from copy import copy
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hilora.errors import InputError

M = TypeVar("M")

SHARE = 0.01
"""Of a card's memory, that what a model of a pool's adapters knows may take; a larger one stays on the CPU."""
LEAST = 2**28
"""Bytes that it may always take."""
_kept: Any = WeakTensorKeyDictionary()
_lock = Lock()


def reading_device(model: nn.Module) -> torch.device:
    """The CUDA device on which a model reads its tokens; the CPU where it reads them on no such device."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    where = getattr(getattr(table, "_hf_hook", None), "execution_device", None)  # accelerate's, of what it offloads
    found = torch.device(where) if where is not None else table.weight.device
    return found if found.type == "cuda" else torch.device("cpu")


def parse_device(name: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        InputError: there is none of that name here.
    """
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"No device {name!r}. Name one as PyTorch does, such as cpu, cuda or cuda:1.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"No device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here.")
    return found


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; whoever sends one of the CPU to a card does not wait for what the card has yet to do."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)  # to the CPU nothing goes unawaited: its numbers would be read too early
    return (tensor.pin_memory() if torch.cuda.is_available() else tensor).to(device, non_blocking=True)


def meet(asked: Tensor, model: M) -> tuple[Tensor, M]:
    """What is asked, and the model that it is put to, on one device: where it is, unless the model is too large.

    Args:
        asked: on any device.
        model: holds tensors of the CPU as attributes, which are replaced by others and never written to.

    Returns:
        As given where all is on the CPU; else a copy of the model with its tensors on that device, where they stay
        for as long as those of the CPU live. Of a model too large for it, what is asked comes to the CPU.
    """
    tables = {} if asked.device.type == "cpu" else {k: v for k, v in vars(model).items() if isinstance(v, Tensor)}
    if not tables or sum(table.nbytes for table in tables.values()) > room_on(asked.device):
        return asked.cpu(), model
    placed = copy(model)
    for name, table in tables.items():
        setattr(placed, name, at(table, asked.device))
    return asked, placed


def at(table: Tensor, device: torch.device) -> Tensor:
    """A table on a device, copied there once."""
    if table.device == device:
        return table
    with _lock:
        copies = _kept.setdefault(table, {})
        if device not in copies:
            copies[device] = table.to(device)
        found: Tensor = copies[device]
    return found


@cache
def room_on(device: torch.device) -> int:
    """Bytes that a model of a pool's adapters may take on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return LEAST
    return max(LEAST, int(SHARE * torch.cuda.get_device_properties(device).total_memory))
