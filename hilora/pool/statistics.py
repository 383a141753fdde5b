"""What routing has learned from a pool's samples, kept with them: POOL/statistics/<key>.safetensors.

The key is a hash of all that it was learned from: the adapters' samples in the pool's order, and the recipe. So what
belongs to a pool as it was before a change is not found any more; writing drops it. A file says its own key and the
sha256 of its tensors; one that is damaged is passed over. It is never needed: whoever finds none fits anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hilora.pool import store
from hilora.pool.view import Entry

LARGE = 100
"""Adapters from which on fitting is worth a file; it takes some seconds for a thousand."""
_log = logging.getLogger(__name__)  # warnings go to standard error, unless the program around wants them elsewhere


def key_of(entries: Sequence[Entry], recipe: str) -> str:
    """Names what a recipe learns from these adapters' samples."""
    return hashlib.sha256("\n".join([recipe, *(entry.samples for entry in entries)]).encode()).hexdigest()


def path_of(pool: Path, key: str) -> Path:
    """Where it is kept."""
    return pool / store.STATISTICS / f"{key}.safetensors"


def read(pool: Path, key: str) -> dict[str, Tensor] | None:
    """What was kept, mapped into memory; None if there is nothing, or it is damaged, of which a warning tells."""
    from safetensors import SafetensorError, safe_open

    path = path_of(pool, key)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["hilora"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if about != _about(key, tensors):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        _log.warning(
            "%s is damaged (%s), and was not used. To write it again, run: hilora pool fit --pool %s",
            *(path, error, pool),
        )
        return None
    return tensors


def write(pool: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep it, and nothing that was kept before. The pool's lock must be held."""
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = path_of(pool, key)
    store.write_whole(path, save(whole, metadata={"hilora": json.dumps(_about(key, whole))}))
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()


def tell_missing(pool: Path, adapters: int, why: str = "") -> None:
    """Say that a large pool is fitted at every start, and what to do."""
    if adapters >= LARGE:
        who = "" if os.access(pool, os.W_OK) else ", by somebody who may write there"
        _log.warning(
            "%s keeps no statistics of its %d adapters as they are now, so they are learned at every start, which "
            "takes seconds.%s Run once%s: hilora pool fit --pool %s",
            *(pool, adapters, f" {why}" if why else "", who, pool),
        )


def _about(key: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return {"key": key, "sha256": digest.hexdigest()}
