"""Data files of a pool, read whole and compared with what their names say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hilora.errors import PoolError
from hilora.pool.peft import content_hash
from hilora.pool.store import CANONICAL, HASH
from hilora.types import Factors

CHANGED = "a file of it was changed: content hash differs"


class DamagedError(PoolError):
    """A file of a pool is missing, or not what its name says.

    Args:
        message: says so.
        path: of the file.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def read_factors(path: Path) -> Factors:
    """An adapter's factors, from a file that is named by their content; inverse of `write_factors`.

    Raises:
        DamagedError: the file is missing, or not what its name says.
    """
    factors = _factors(path, read_tensors(path))
    if content_hash(factors) != path.stem:
        raise damaged(path, CHANGED)
    return factors


def read_canonical(pool: Path, content: str) -> Factors | None:
    """Inverse of `write_canonical`; None where none are kept.

    Raises:
        DamagedError: they are not what was written, as far as that is known.
    """
    path = pool / CANONICAL / f"{content}.safetensors"
    if not path.exists():
        return None
    tensors, about = _read(path)
    factors = _factors(path, tensors)
    if HASH in about and about[HASH] != content_hash(factors):
        raise damaged(path, CHANGED)
    return factors


def _factors(path: Path, tensors: Mapping[str, Tensor]) -> Factors:
    sites = {key.rsplit("|", 1)[0] for key in tensors}
    try:
        return {site: (tensors[f"{site}|down"], tensors[f"{site}|up"]) for site in sorted(sites)}
    except KeyError as error:
        raise damaged(path, f"no tensor {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in memory of their own: a file that others write to, cut or delete later changes none.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and what was written beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
        tensors = load(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, error) from error
    return tensors, about.get("__metadata__", {})


def damaged(path: Path, why: object) -> DamagedError:
    """The error of a data file that is not what its name says."""
    return DamagedError(
        f"{path} is missing or damaged ({why}). Run: hilora pool check; then remove and add the adapter again.", path
    )
