"""The epoch of a pool: what its adapters share (`route.epoch`), in POOL/epochs/<key>.safetensors.

The manifest names it by its key, a hash of the file's tensors. A pool without an epoch is fitted from nothing: what
its adapters share is then what these very adapters have in common, and changes with each of them. A file that is
missing or damaged is an error: without it routes would silently be others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from hilora.base.embed import EmbedderInfo
from hilora.errors import MismatchError, PoolError
from hilora.pool import reading, store
from hilora.pool.manifest import known
from hilora.route.epoch import Epoch, learn_epoch
from hilora.route.features import Features

FIELD = "epoch"
"""Of the manifest."""
RENEW = "Make a new one: Pool.open(POOL).renew_epoch(), or go without: Pool.open(POOL).drop_epoch()"


@dataclass(frozen=True)
class EpochInfo:
    """An epoch, as a manifest names it.

    Attributes:
        key: of its content; names its file.
        number: counts a pool's epochs, from 1.
        adapters: how many it was learned from.
        pool: how many the pool had then.
        ridge: of the own-covariance Gaussian.
        embedder: fingerprint of the one that the samples were embedded with.
        made: UTC time.
    """

    key: str
    number: int
    adapters: int
    pool: int
    ridge: float
    embedder: str
    made: str

    def check(self, pool: Path, embedder: EmbedderInfo) -> None:
        """Refuse an epoch of other samples than the pool's.

        Raises:
            MismatchError: they were embedded by another embedder.
        """
        if self.embedder != embedder.fingerprint:
            raise MismatchError(f"The epoch of {pool} is of another embedder than the pool's samples. {RENEW}")

    def is_stale(self, size: int, among: int | None = None) -> bool:
        """Whether the pool has grown or shrunk by a tenth since.

        Args:
            size: how many adapters it has now.
            among: how many of them the next epoch would be learned from, if not from all.
        """
        before, now = (self.pool, size) if among is None else (self.adapters, among)
        return 11 * min(before, now) <= 10 * max(before, now)


def read_info(raw: Any) -> EpochInfo | None:
    """An epoch as a manifest names it; None where it names none.

    Raises:
        KeyError, TypeError, ValueError: it does not say what it should.
    """
    if raw is None:
        return None
    info = EpochInfo(**known(raw, [each.name for each in fields(EpochInfo)]))
    if not (isinstance(info.key, str) and len(info.key) == 64 and set(info.key) <= set("0123456789abcdef")):
        raise ValueError(f"{FIELD}: expected a sha256 as its key, got {info.key!r:.80}")
    if not all(type(number) is int for number in (info.number, info.adapters, info.pool)):
        raise TypeError(f"{FIELD}: expected whole numbers, got {raw!r:.200}")
    return info


def head_of(info: EpochInfo, kept: Mapping[str, Tensor], last: EpochInfo | None) -> dict[str, Any]:
    """What a manifest says of an epoch that comes after another; ridge and calibration are for older versions too."""
    named = vars(replace(info, number=1 if last is None else last.number + 1))
    calibration = asdict(Epoch.of(info.key, kept).calibration)
    return {FIELD: named, "ridge": info.ridge, "calibration": calibration, "tuned_on": info.pool}


def path_of(pool: Path, key: str) -> Path:
    """Where an epoch is kept."""
    return pool / store.EPOCHS / f"{key}.safetensors"


def learn(samples: Sequence[Features], embedder: EmbedderInfo, pool: int) -> tuple[EpochInfo, dict[str, Tensor]]:
    """Learn an epoch from adapters' samples: how a manifest names it, but for its number, and its tensors.

    Args:
        samples: of the adapters that it is learned from.
        embedder: that they were embedded with.
        pool: how many adapters the pool has.

    Raises:
        InputError: there are no samples.
    """
    kept = learn_epoch(samples)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return EpochInfo(_key(kept), 1, len(samples), pool, float(kept["ridge"]), embedder.fingerprint, made), kept


def write(pool: Path, key: str, kept: Mapping[str, Tensor]) -> None:
    """Keep an epoch's tensors. The pool's lock must be held."""
    store.write_tensors(path_of(pool, key), kept)


def read(pool: Path, info: EpochInfo, embedder: EmbedderInfo) -> Epoch:
    """The epoch that a manifest names.

    Raises:
        PoolError: its file is missing or damaged.
        MismatchError: it is of another embedder's samples, or of another version of hilora.
    """
    path = path_of(pool, info.key)
    info.check(pool, embedder)
    try:
        kept = reading.read_tensors(path)
        if _key(kept) != info.key:
            raise PoolError(f"{path} was changed (content hash differs)")
    except PoolError as error:
        raise PoolError(f"The epoch of {pool} cannot be read, {path} is missing or damaged. {RENEW}") from error
    try:
        return Epoch.of(info.key, kept)
    except (KeyError, ValueError) as error:
        raise MismatchError(f"The epoch of {pool} is not for this hilora: {error}. {RENEW}") from error


def _key(kept: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(kept.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
