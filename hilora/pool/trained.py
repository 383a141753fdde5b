"""What methods have trained, kept beside the pool: POOL/trained/<kind>.safetensors.

Each file says what it was trained with: the pool's version and adapters, the data, the recipe. Whether it serves a
pool that has changed since is the method's business: RouterLoRA looks at what adapters do and serves any; gates that
belong to an adapter serve that adapter alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hilora.errors import InputError, MismatchError, PoolError
from hilora.pool import store
from hilora.pool.view import PoolView

TRAINED = "trained"
KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Trained:
    """The trained part of a method.

    Attributes:
        kind: "router", "phatgoose", "moe-soft", ...: names the file.
        tensors: the weights.
        adapters: name -> content hash of the adapters that it was trained with.
        base: sketch of the base's modules that it belongs to: site -> (in, out).
        pool_version: of the pool at the time.
        data: sha256 of the training examples.
        recipe: everything else that went into it, numbers and texts.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    adapters: Mapping[str, str]
    base: Mapping[str, tuple[int, int]]
    pool_version: int
    data: str
    recipe: Mapping[str, Any]

    def save(self, pool: Path) -> Path:
        """Write it beside a pool, whole or not at all."""
        from safetensors.torch import save

        about = {
            "adapters": dict(self.adapters),
            "base": {site: list(shape) for site, shape in self.base.items()},
            "pool_version": self.pool_version,
            "data": self.data,
            "recipe": dict(self.recipe),
        }
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        path = trained_path(pool, self.kind)
        with store.explained(f"write {path}"):
            store.write_whole(path, save(tensors, metadata={"hilora": json.dumps(about)}))
        return path


def trained_path(pool: Path, kind: str) -> Path:
    """Where the trained part of a method lies.

    Raises:
        InputError: the name would lead elsewhere.
    """
    if not KIND.fullmatch(kind):
        raise InputError(f"A trained part's name has lower-case letters, digits, '.', '_' and '-'; got {kind!r}.")
    return pool / TRAINED / f"{kind}.safetensors"


def load_trained(pool: PoolView, kind: str) -> Trained:
    """The trained part of a method.

    Raises:
        PoolError: there is none, or it is damaged.
        MismatchError: it belongs to another base model.
    """
    from safetensors import SafetensorError, safe_open

    path = trained_path(pool.path, kind)
    if not path.exists():
        raise PoolError(
            f"This method has a trained part, and {pool.path} has none. Run: {_command(kind)} --pool {pool.path}"
        )
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["hilora"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        found = Trained(
            kind,
            tensors,
            about["adapters"],
            {site: (int(i), int(o)) for site, (i, o) in about["base"].items()},
            int(about["pool_version"]),
            about["data"],
            about["recipe"],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise damaged(path, "numbers that are not finite")
    for site, shape in found.base.items():
        if pool.base.sites.get(site) != shape:
            raise MismatchError(
                f"{path} was trained for a base with {site} of shape {shape}; this pool's base has "
                f"{pool.base.sites.get(site, 'no such module')}. Train it again for this base."
            )
    return found


def require_all(trained: Trained, pool: PoolView) -> None:
    """Refuse a pool with enabled adapters that are new, or have changed, since the training.

    Raises:
        MismatchError: names them.
    """
    known = set(trained.adapters.values())
    new = [entry.name for entry in pool.entries if entry.enabled and entry.hash not in known]
    if new:
        listed = ", ".join(sorted(new)[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        raise MismatchError(
            f"{trained.kind} was trained without {listed}. Run again: {_command(trained.kind)} --pool {pool.path}; "
            f"or disable those adapters."
        )


def damaged(path: Path, why: object) -> PoolError:
    """The error of a trained part that is not what it should be."""
    return PoolError(f"{path} is damaged ({why!r}). Train it again, or restore it from a copy.")


def tensor_of(trained: Trained, pool: PoolView, key: str, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor of a trained part, of the shape that it must have; None stands for any length.

    Raises:
        PoolError: there is none, or it has another shape.
    """
    found = trained.tensors.get(key)
    fits = found is not None and found.ndim == len(shape)
    if found is None or not fits or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
        got = "none" if found is None else tuple(found.shape)
        raise damaged(trained_path(pool.path, trained.kind), f"{key}: expected shape {shape}, got {got}")
    return found


def _command(kind: str) -> str:
    """What trains it; a RouterLoRA may have any name."""
    if kind in ("router", "phatgoose", "lorahub"):
        return f"hilora train {kind} --data DIR"
    is_mixture = kind == "smear" or kind.startswith("moe-")
    return f"hilora train {f'moe --kind {kind}' if is_mixture else f'router --name {kind}'} --data DIR"
