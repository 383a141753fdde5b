"""What a measured number was measured with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers

import hilora


def setup(name: str, **more: Any) -> dict[str, Any]:
    """Versions and device, with whatever else belongs to the measurement."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "setup": name,
        "hilora": hilora.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        **more,
    }


def _processor() -> str:
    """The processor's name; Linux tells it only in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
