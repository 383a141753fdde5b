"""Reading a pool: its manifest when it is opened, weights and embeddings when a route first needs them.

A view keeps what it opened, whatever others do to the folder meanwhile; `reload` takes the present state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.base.fingerprint import BaseInfo
from hilora.errors import MismatchError, PoolError, UnknownNameError
from hilora.pool import store
from hilora.route.experts import Calibration
from hilora.route.features import Features
from hilora.types import Factors

V = TypeVar("V", bound="PoolView")  # typing.Self would do, but the run-time shape checks cannot read it


@dataclass(frozen=True)
class Entry:
    """One adapter in the manifest.

    Attributes:
        name: unique in the pool.
        hash: content hash of its factors, names its file.
        samples: content hash of its samples' embeddings, names their file.
        rank: its largest rank; `num_sites` modules adapted, `num_parameters` in all.
        base_model: the base that its config names.
        num_samples: m.
        enabled: whether it may be routed to.
        added: UTC time.
        origin: what its samples are: "samples" of its training data, "prompts" that somebody wrote, or sentences of a
            "description".
    """

    name: str
    hash: str
    samples: str
    rank: int
    num_sites: int
    num_parameters: int
    base_model: str
    num_samples: int
    enabled: bool
    added: str
    origin: str = "samples"


@dataclass(frozen=True)
class EmbedderInfo:
    """The embedder that a pool's statistics were made with."""

    name: str
    dim: int
    instruction: str
    fingerprint: str


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Adapters in a pool's order."""
    return sorted(entries, key=lambda entry: (entry.hash, entry.name))


class PoolView:
    """What a pool folder held when it was opened.

    Attributes:
        path: the folder.
        entries: the adapters, ordered by content hash (so that the order of adding changes nothing).
        embedder: what its samples were embedded with.
        ridge: for the own-covariance Gaussian, chosen on the samples.
        calibration: of the scores of `route.experts`, from the samples; None before the first tuning.
        version: counts the changes.
    """

    entries: tuple[Entry, ...]
    embedder: EmbedderInfo
    ridge: float
    calibration: Calibration | None
    tuned_on: int
    version: int
    _positions: Mapping[str, int]
    _enabled: Bool[Tensor, " adapter"]
    _text: bytes

    def __init__(self, path: Path, text: bytes) -> None:
        self.path = path
        self._take(text, store.parse_manifest(path, text))

    def _take(self, text: bytes, manifest: Mapping[str, Any], entries: Sequence[Entry] | None = None) -> None:
        """Make a manifest this view's state, wholly or not at all.

        Args:
            text: as it is written.
            manifest: what it says.
            entries: its adapters in their order, where they are at hand.
        """
        try:
            if entries is None:
                entries = in_order(Entry(**raw) for raw in manifest["adapters"])
            found = manifest.get("calibration")
            state = {
                "entries": tuple(entries),
                "embedder": EmbedderInfo(**manifest["embedder"]),
                "ridge": float(manifest["ridge"]),
                "calibration": None if found is None else Calibration.from_json(found),
                "tuned_on": int(manifest["tuned_on"]),
                "version": int(manifest["version"]),
                "_positions": {entry.name: i for i, entry in enumerate(entries)},
                "_enabled": torch.tensor([entry.enabled for entry in entries], dtype=torch.bool),
                "_text": text,
            }
        except (KeyError, TypeError, ValueError) as error:
            raise PoolError(f"{self.path / store.MANIFEST} is damaged: {error!r}. Restore it from a copy.") from error
        vars(self).update(state)

    @classmethod
    def open(cls: type[V], path: str | Path) -> V:
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

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def base(self) -> BaseInfo:
        """The base model that the adapters were checked against."""
        try:
            return BaseInfo.from_json((self.path / store.BASE).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PoolError(f"{self.path / store.BASE} cannot be read: {error!r}. Restore it from a copy.") from error

    @property
    def names(self) -> list[str]:
        """Adapter names in the pool's order."""
        return [entry.name for entry in self.entries]

    def index(self, name: str) -> int:
        """Position of an adapter.

        Raises:
            UnknownNameError: there is none of that name.
        """
        if name not in self._positions:
            raise UnknownNameError("adapter", name, self.names)
        return self._positions[name]

    def allowed(
        self, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None
    ) -> Bool[Tensor, " adapter"]:
        """Which adapters may be routed to: enabled ones, of the allow list if given, not of the deny list.

        Raises:
            UnknownNameError: a list names an adapter that the pool does not have.
        """
        mask = self._enabled.clone()
        if allow is not None:
            listed = torch.zeros_like(mask)
            listed[[self.index(name) for name in allow]] = True
            mask &= listed
        mask[[self.index(name) for name in deny or ()]] = False
        return mask

    def factors(self, content: str) -> Factors:
        """An adapter's factors by content hash, memory-mapped."""
        path = self.path / store.ADAPTERS / f"{content}.safetensors"
        tensors = store.map_tensors(path)
        sites = {key.rsplit("|", 1)[0] for key in tensors}
        try:
            return {site: (tensors[f"{site}|down"], tensors[f"{site}|up"]) for site in sorted(sites)}
        except KeyError as error:
            raise store.damaged(path, f"no tensor {error}") from error

    def samples(self) -> list[Features]:
        """What is kept of all adapters' samples, in the pool's order."""
        return [self._samples(entry) for entry in self.entries]

    def _samples(self, entry: Entry) -> Features:
        path = self.path / store.SAMPLES / f"{entry.samples}.safetensors"
        try:
            return Features.from_tensors(store.map_tensors(path))
        except KeyError as error:
            raise store.damaged(path, f"no tensor {error}") from error

    def check_embedder(self, embedder: EmbedderInfo) -> None:
        """Refuse embeddings of another model than the pool's.

        Raises:
            MismatchError: says which model built the pool, and how to rebuild it.
        """
        if embedder != self.embedder:
            raise MismatchError(
                f"The pool was embedded with {_embedder(self.embedder)}, not with {_embedder(embedder)}. "
                f"Use that embedder, or run: "
                f"hilora pool reembed --pool {self.path} --embedder {embedder.name} --samples DIR"
            )


def _embedder(info: EmbedderInfo) -> str:
    return f"{info.name!r} (dim {info.dim}, instruction {info.instruction!r}, {info.fingerprint})"
