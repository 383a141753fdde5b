"""Whether kernels run on a device: tried once, since triton may be missing, or find no compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

_log = logging.getLogger("hilora")


def works(launch: Callable[[], object], where: torch.device, instead: str) -> bool:
    """Whether a kernel can be launched; what happens instead is logged, unless triton is not there at all."""
    try:
        launch()
    except ImportError:
        return False  # a PyTorch without triton
    except Exception as error:  # noqa: BLE001  # no compiler, no headers, a card that triton does not know
        _log.warning("%s: triton does not work on %s (%s)", instead, where, error)
        return False
    return True
