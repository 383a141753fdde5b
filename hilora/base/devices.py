"""Between the CPU and a card: what is copied there, and what stays there, with nobody waiting that need not."""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

SHARE = 0.01
"""Of a card's memory, that the tables of one question may take; larger ones stay on the CPU."""
LEAST = 2**28
"""Bytes of tables that a card always takes."""
_kept: Any = WeakTensorKeyDictionary()
_lock = Lock()


def reading_device(model: nn.Module) -> torch.device:
    """The CUDA device on which a model reads its tokens; the CPU where it reads them on no such device."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    where = getattr(getattr(table, "_hf_hook", None), "execution_device", None)  # accelerate's, of what it offloads
    found = torch.device(where) if where is not None else table.weight.device
    return found if found.type == "cuda" else torch.device("cpu")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; whoever sends it to a card does not wait for what the card has yet to do."""
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def meet(asked: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """What is asked, and the tables that it is compared with, on one device: where it is, unless they are too large.

    Tables stay on a card for as long as the tensors on the CPU live that they are copies of; no value of those may
    change.
    """
    device = asked.device
    if sum(table.nbytes for table in tables) > room_on(device):
        return asked.cpu(), *tables
    return asked, *(at(table, device) for table in tables)


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
def room_on(device: torch.device) -> float:
    """Bytes that the tables of one question may take on a device."""
    if device.type == "cpu":
        return float("inf")
    if device.type != "cuda" or not torch.cuda.is_available():
        return LEAST
    return max(LEAST, SHARE * torch.cuda.get_device_properties(device).total_memory)
