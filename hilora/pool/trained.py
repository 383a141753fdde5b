"""What methods have trained, kept beside the pool: POOL/trained/<kind>.safetensors.

Each file says what it was trained with: the pool's version and adapters, the data, the recipe. Whether it serves a
pool that has changed since is the method's business: RouterLoRA looks at what adapters do and serves any; gates that
belong to an adapter serve that adapter alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hilora.errors import MismatchError, PoolError
from hilora.pool import store
from hilora.pool.view import PoolView

TRAINED = "trained"


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
    """Where the trained part of a method lies."""
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
        raise PoolError(f"{path} is damaged ({error!r}). Train it again, or restore it from a copy.") from error
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


def _command(kind: str) -> str:
    """What trains it; a RouterLoRA may have any name."""
    if kind in ("router", "phatgoose", "lorahub"):
        return f"hilora train {kind}"
    is_mixture = kind == "smear" or kind.startswith("moe-")
    return f"hilora train moe --kind {kind}" if is_mixture else f"hilora train router --name {kind}"
