"""Reading a pool: its manifest when it is opened, weights and embeddings when a route first needs them.

A view keeps what it opened, whatever others do to the folder meanwhile; `reload` takes the present state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.fingerprint import BaseInfo
from hilora.errors import PoolError
from hilora.pool import epochs, reading, statistics, store
from hilora.pool.epochs import EpochInfo
from hilora.pool.manifest import HEAD, read_entry
from hilora.pool.place import read_base, read_embedder
from hilora.pool.view import Entry, PoolView
from hilora.route.epoch import Epoch
from hilora.route.experts import Calibration
from hilora.route.features import Features
from hilora.route.regrow import regrown
from hilora.route.stored import RECIPE, covers, learn, learn_grown
from hilora.types import Factors

F = TypeVar("F", bound="PoolFolder")  # typing.Self would do, but the run-time shape checks cannot read it


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Adapters in a pool's order."""
    return sorted(entries, key=lambda entry: (entry.hash, entry.name))


class PoolFolder(PoolView):
    """What a pool folder held when it was opened.

    Attributes:
        calibration: of the scores of `route.experts`, from the samples; None before the first tuning.
        tuned_on: the number of adapters at the last tuning.
        epoch_info: the epoch that the manifest names; None where the pool is fitted from nothing.
        extra: fields of the manifest that this version does not know; kept in every change.
        lost: hashes of samples that cannot be read, as a server found: another adapter's stand in for them.
    """

    calibration: Calibration | None
    tuned_on: int
    epoch_info: EpochInfo | None
    extra: Mapping[str, Any]
    lost: frozenset[str] = frozenset()
    _head: Mapping[str, Any]
    _text: bytes
    _epoch: Epoch | None = None

    def __init__(self, path: Path, text: bytes) -> None:
        self.path = path.absolute()  # whoever opened it may go elsewhere
        self._take(text, store.parse_manifest(path, text))

    def __repr__(self) -> str:
        """One line, also of a pool whose base cannot be read."""
        try:
            base = self.base.name
        except PoolError:
            base = "an unreadable base"
        return f"{type(self).__name__}({str(self.path)!r}: {len(self)} adapters for {base}, version {self.version})"

    def _take(self, text: bytes, manifest: Mapping[str, Any], entries: Sequence[Entry] | None = None) -> None:
        """Make a manifest this view's state, wholly or not at all.

        Args:
            text: as it is written.
            manifest: what it says; its adapters may be left out where they are at hand.
            entries: those, in their order.
        """
        try:
            if entries is None:
                entries = in_order(map(read_entry, manifest["adapters"]))
            found, epoch = manifest.get("calibration"), epochs.read_info(manifest.get(epochs.FIELD))
            state = {
                "entries": tuple(entries),
                "embedder": read_embedder(manifest["embedder"], self.path),
                "ridge": float(manifest["ridge"] if epoch is None else epoch.ridge),
                "calibration": None if found is None else Calibration.from_json(found),
                "tuned_on": int(manifest["tuned_on"]),
                "version": int(manifest["version"]),
                "epoch_info": epoch,
                "epoch_key": "" if epoch is None else epoch.key,
                "extra": {key: value for key, value in manifest.items() if key not in HEAD},
                "_head": {key: value for key, value in manifest.items() if key != "adapters"},
                "_positions": {entry.name: i for i, entry in enumerate(entries)},
                "_enabled": torch.tensor([entry.enabled for entry in entries], dtype=torch.bool),
                "_public": torch.tensor([not entry.extra.get("tenant") for entry in entries], dtype=torch.bool),
                "_text": text,
            }
        except (KeyError, TypeError, ValueError) as error:
            raise PoolError(f"{self.path / store.MANIFEST} is damaged: {error!r}. Restore it from a copy.") from error
        vars(self).update(state)

    @classmethod
    def open(cls: type[F], path: str | Path) -> F:
        """Open a pool folder, reading its manifest only.

        Raises:
            PoolError: there is no pool, or it is damaged.
            MismatchError: it was written by a newer version.
        """
        return cls(Path(path), store.read_manifest(Path(path)))

    def reload(self) -> None:
        """Take the folder's present state."""
        text = store.read_manifest(self.path)
        if text != self._text:
            self._take(text, store.parse_manifest(self.path, text))

    @cached_property
    def base(self) -> BaseInfo:  # type: ignore[override]
        """The base model that the adapters were checked against."""
        try:
            return read_base(json.loads((self.path / store.BASE).read_bytes()), self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PoolError(f"{self.path / store.BASE} cannot be read: {error!r}. Restore it from a copy.") from error

    def factors(self, content: str) -> Factors:
        """An adapter's factors by content hash.

        Raises:
            DamagedError: their file is missing, or not what its name says.
        """
        return reading.read_factors(self.path / store.ADAPTERS / f"{content}.safetensors")

    def samples(self, some: Sequence[int] | None = None) -> list[Features]:
        """What is kept of all adapters' samples, or of some, by position; in the pool's order."""
        entries = self.entries if some is None else [self.entries[i] for i in some]
        return [self._samples(entry) for entry in entries]

    def sample_keys(self) -> list[str]:
        """Content hashes of all adapters' samples, in the pool's order; of lost ones no hash that others have."""
        lost = self.lost
        return [f"lost {entry.samples}" if entry.samples in lost else entry.samples for entry in self.entries]

    def embeddings(self) -> list[Float[Tensor, "_ dim"]]:
        """Those of each adapter's samples, in the pool's order."""
        return [own.embeddings for own in self.samples()]

    @property
    def epoch(self) -> Epoch | None:
        """What adapters share by the pool's epoch, read when it is first needed; None where it has none."""
        if self.epoch_info is None:
            return None
        if self._epoch is None or self._epoch.key != self.epoch_info.key:
            self._epoch = epochs.read(self.path, self.epoch_info, self.embedder)
        return self._epoch

    def shared(self) -> Epoch | None:
        """The epoch, as routers ask for it."""
        return self.epoch

    def epoch_is_stale(self, only: Sequence[str] | None = None) -> bool:
        """Whether it is time for a new epoch: there is none, or the pool has grown or shrunk by a tenth since.

        Args:
            only: names of the adapters that it would be learned from; default: all.
        """
        if self.epoch_info is None:
            return bool(self.entries)
        return self.epoch_info.is_stale(len(self), None if only is None else len(only))

    def regrown(self, router: Any, since: PoolView) -> Any:
        """A router of an earlier view, made one of this; None where what it has learned need not hold."""
        if not isinstance(since, PoolFolder):
            return None
        if since.epoch_info == self.epoch_info:
            self._epoch = since._epoch
        return regrown(router, since, self)

    def learned(self, recipe: str) -> dict[str, Tensor] | None:
        """What a recipe has learned from these samples, if it was kept; a warning where learning takes long.

        Under an epoch, what it has learned from each adapter's, whoever the others were.
        """
        found = statistics.read(self.path, self._key(recipe))
        if found is None:
            statistics.tell_missing(self.path, len(self))
        return found

    def fit(self, *, always: bool = False) -> Path | None:
        """Keep what `hilora-plus` learns from the samples beside the pool, which stays as it is.

        Args:
            always: also of fewer than `statistics.LARGE` adapters; and do not only warn if the folder refuses it.

        Returns:
            where it is kept, if it is.

        Raises:
            PoolError: it cannot be written.
        """
        key = self._key(RECIPE)
        if not self.entries or not (always or len(self) >= statistics.LARGE):
            return None
        kept = statistics.read(self.path, key)
        if kept is None or (self.epoch is not None and not covers(kept, self.sample_keys())):
            found = learn(self.samples()) if self.epoch is None else learn_grown(self)
            try:
                with store.alone(self.path):
                    if PoolFolder.open(self.path)._key(RECIPE) == key:  # else others have changed the pool meanwhile
                        statistics.write(self.path, key, found)
            except PoolError as error:
                if always:
                    raise
                statistics.tell_missing(self.path, len(self), str(error))
                return None
        return statistics.path_of(self.path, key)

    def _key(self, recipe: str) -> str:
        """Of what is kept under a recipe: of these adapters, or of any under this epoch."""
        info = self.epoch_info
        return statistics.key_of(
            self.entries if info is None else (), recipe + (f", epoch {info.key}" if info else "")
        )

    def _samples(self, entry: Entry) -> Features:
        readable = (each.samples for each in (entry, *self.entries) if each.samples not in self.lost)
        return self.read_samples(self.path / store.SAMPLES / f"{next(readable, entry.samples)}.safetensors")

    @staticmethod
    def read_samples(path: Path) -> Features:
        """What is kept of an adapter's samples, from a file that is named by their content.

        Raises:
            DamagedError: the file is missing, or not what its name says.
        """
        try:
            found = Features.from_tensors(reading.read_tensors(path))
        except (KeyError, RuntimeError) as error:
            raise reading.damaged(path, f"no tensor {error}") from error
        if found.content_hash() != path.stem:
            raise reading.damaged(path, reading.CHANGED)
        return found
