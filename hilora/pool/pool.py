"""Changing a pool: adapters are added, replaced, disabled and removed, each change wholly or not at all.

A change is prepared beside the pool and becomes true when the manifest is replaced; `kill -9` at any point
leaves the old or the new state. Writers take turns by a lock file; readers never wait.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.errors import InputError, MismatchError, PoolError
from hilora.fingerprint import BaseInfo
from hilora.pool import store
from hilora.pool.peft import content_hash, read_adapter
from hilora.pool.view import EmbedderInfo, Entry, PoolView
from hilora.route.gaussian import check_samples
from hilora.route.ridge import RIDGE, choose_ridge

Embed = Callable[[Sequence[str]], Tensor]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RETUNE_GROWTH = 1.25


class Pool(PoolView):
    """A pool folder that can be changed. Reading is inherited from `PoolView`."""

    @classmethod
    def create(cls, path: str | Path, base: BaseInfo, embedder: EmbedderInfo) -> Pool:
        """Make an empty pool.

        Raises:
            PoolError: the folder holds a pool already, or cannot be written.
        """
        path = Path(path)
        if (path / store.MANIFEST).exists():
            raise PoolError(f"{path} holds a pool already. Open it, or choose another folder.")
        manifest = {
            "format": store.FORMAT,
            "version": 0,
            "embedder": asdict(embedder),
            "ridge": RIDGE,
            "tuned_on": 0,
            "adapters": [],
        }
        with store.explained(f"make a pool at {path}"):
            store.write_whole(path / store.BASE, base.to_json().encode())
            store.write_manifest(path, manifest)
        return cls(path, manifest)

    @contextmanager
    def _edit(self) -> Iterator[dict[str, Entry]]:
        """The entries by name under the pool's lock; written as one change when the block ends well."""
        from filelock import FileLock

        with store.explained(f"change the pool {self.path}"), FileLock(self.path / ".lock"):
            self.reload()
            entries = {entry.name: entry for entry in self.entries}
            yield entries
            self.entries = tuple(sorted(entries.values(), key=lambda entry: (entry.hash, entry.name)))
            self.version += 1
            self._write()

    def _write(self) -> None:
        manifest = {
            "format": store.FORMAT,
            "version": self.version,
            "embedder": asdict(self.embedder),
            "ridge": self.ridge,
            "tuned_on": self.tuned_on,
            "adapters": [asdict(entry) for entry in self.entries],
        }
        store.write_manifest(self.path, manifest)

    def add(
        self,
        name: str,
        folder: str | Path,
        samples: Sequence[str],
        embed: Embed,
        *,
        replace: bool = False,
        any_base: bool = False,
    ) -> Entry:
        """Check an adapter and put it into the pool, wholly or not at all.

        Args:
            name: unique in the pool: letters, digits, dots, dashes.
            folder: the PEFT folder.
            samples: a few texts of its training data (20 in the paper); only their embeddings are kept.
            embed: the pool's embedder.
            replace: take the place of an adapter of that name.
            any_base: accept an adapter whose config names another base model.

        Raises:
            InputError: the name is taken or malformed, or the samples are too few.
            AdapterError: the adapter cannot be used on this base.
            PoolError: the pool cannot be written.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no adapter name: use letters, digits, '.', '_' and '-', at most 128.")
        if not replace and name in self.names:
            raise InputError(f"The pool has an adapter {name!r} already. Choose another name, or pass --replace.")
        adapter = read_adapter(Path(folder), name=name, sites=self.base.sites)
        if not any_base:
            self.base.check_adapter(name, adapter.base_model)
        vectors = self._embed(name, samples, embed)
        sample_hash = _write_hash(vectors)
        entry = Entry(
            name=name,
            hash=adapter.hash,
            samples=sample_hash,
            rank=adapter.rank,
            num_sites=len(adapter.factors),
            num_parameters=sum(d.numel() + u.numel() for d, u in adapter.factors.values()),
            base_model=adapter.base_model,
            num_samples=len(vectors),
            enabled=True,
            added=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        tensors = {
            f"{site}|{side}": tensor
            for site, pair in adapter.factors.items()
            for side, tensor in zip(("down", "up"), pair, strict=True)
        }
        with self._edit() as entries:
            if name in entries and not replace:
                raise InputError(f"The pool has an adapter {name!r} already. Choose another name, or pass --replace.")
            store.write_tensors(self.path / store.ADAPTERS / f"{entry.hash}.safetensors", tensors)
            store.write_tensors(self.path / store.SAMPLES / f"{sample_hash}.safetensors", {"embeddings": vectors})
            entries[name] = entry
        return entry

    def _embed(self, name: str, samples: Sequence[str], embed: Embed) -> Float[Tensor, "sample dim"]:
        texts = [text for text in samples if text.strip()]
        vectors = embed(texts).float().contiguous() if texts else torch.empty(0, self.embedder.dim)
        if vectors.ndim != 2 or vectors.shape[1] != self.embedder.dim:
            raise MismatchError(
                f"Embeddings have shape {tuple(vectors.shape)}; this pool's embedder {self.embedder.name!r} has "
                f"dim {self.embedder.dim}. Embed with it, or run: hilora pool reembed"
            )
        check_samples(vectors, name)
        return vectors

    def remove(self, name: str) -> None:
        """Take an adapter out; its files stay for those who have the pool open, until `prune`."""
        self.index(name)
        with self._edit() as entries:
            entries.pop(name, None)

    def enable(self, name: str, enabled: bool = True) -> None:
        """Let an adapter be routed to, or not."""
        self.index(name)
        with self._edit() as entries:
            entries[name] = replace(entries[name], enabled=enabled)

    def prune(self) -> list[Path]:
        """Delete files that no adapter uses. Close other users of the pool before."""
        with self._edit():
            used = {entry.hash for entry in self.entries} | {entry.samples for entry in self.entries}
            return store.prune(self.path, used)

    def tune(self, *, always: bool = False) -> float:
        """Choose the ridge on the samples again, if the pool has grown or shrunk by a quarter since."""
        grown = RETUNE_GROWTH * min(len(self), self.tuned_on) < max(len(self), self.tuned_on)
        if always or grown:
            ridge = choose_ridge(self.embeddings())
            with self._edit():
                self.ridge, self.tuned_on = ridge, len(self)
        return self.ridge

    def reembed(self, samples: Mapping[str, Sequence[str]], embedder: EmbedderInfo, embed: Embed) -> None:
        """Embed all adapters' samples anew, with another embedder; texts come from the caller.

        Raises:
            InputError: an adapter's samples are missing; the pool stays as it was.
        """
        if missing := [name for name in self.names if name not in samples]:
            raise InputError(
                f"Re-embedding needs the samples of every adapter; none for {', '.join(missing)}. "
                f"Put them at DIR/<adapter>.jsonl or DIR/<adapter>/samples.jsonl."
            )
        old, self.embedder = self.embedder, embedder
        try:
            vectors = {name: self._embed(name, samples[name], embed) for name in self.names}
        finally:
            self.embedder = old
        with self._edit() as entries:
            for name in entries:
                content = _write_hash(vectors[name])
                path = self.path / store.SAMPLES / f"{content}.safetensors"
                store.write_tensors(path, {"embeddings": vectors[name]})
                entries[name] = replace(entries[name], samples=content, num_samples=len(vectors[name]))
            self.embedder = embedder
        self.tune(always=True)

    def check(self) -> Iterator[tuple[Entry, str]]:
        """Read every adapter again; yields each with what is wrong, "" if nothing is."""
        for entry in self.entries:
            try:
                content = content_hash(self.factors(entry.hash))
                wrong = "" if content == entry.hash else "its file was changed (content hash differs)"
                check_samples(self._samples(entry), entry.name)
            except (PoolError, InputError) as error:
                wrong = str(error)
            yield entry, wrong


def _write_hash(vectors: Tensor) -> str:
    return hashlib.sha256(repr(tuple(vectors.shape)).encode() + vectors.numpy().tobytes()).hexdigest()
