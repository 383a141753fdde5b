"""Changing a pool: adapters are added, replaced, disabled and removed, each change wholly or not at all.

A change is prepared beside the pool and becomes true when the manifest is replaced; `kill -9` at any point
leaves the old or the new state. Writers take turns by a lock file; readers never wait.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from hilora.base.embed import EmbedderInfo
from hilora.base.fingerprint import BaseInfo
from hilora.errors import InputError, PoolError
from hilora.pool import epochs, store
from hilora.pool.draft import Draft
from hilora.pool.epochs import EpochInfo
from hilora.pool.folder import PoolFolder, in_order
from hilora.pool.lease import refuse_leased
from hilora.pool.looked import Embed, look_at
from hilora.pool.manifest import OF_SAMPLES, check_name, inherit
from hilora.pool.place import write_base, write_embedder
from hilora.pool.prepared import prepare
from hilora.pool.view import Entry
from hilora.route.apart import has_grown
from hilora.route.experts import calibrate
from hilora.route.features import check_samples
from hilora.route.gaussian import RIDGE
from hilora.route.ridge import choose_ridge
from hilora.route.stored import RECIPE

TENANTS = "tenants"
"""What a pool needs of its readers if it holds adapters that are not everybody's."""
_log = logging.getLogger(__name__)  # warnings go to standard error, unless the program around wants them elsewhere


class Pool(PoolFolder):
    """A pool folder that can be changed. Reading is inherited from `PoolFolder`."""

    @classmethod
    def create(cls, path: str | Path, base: BaseInfo, embedder: EmbedderInfo) -> Pool:
        """Make an empty pool.

        Raises:
            PoolError: the folder holds a pool already, or cannot be written.
        """
        path = Path(path)
        if (path / store.MANIFEST).exists():
            raise PoolError(f"{path} holds a pool already. Open it, or choose another folder.")
        with store.explained(f"make a pool at {path}"):
            store.write_whole(path / store.BASE, json.dumps(write_base(base, path)).encode())
            head = {
                "format": store.FORMAT,
                "version": 0,
                "needs": [],
                "embedder": write_embedder(embedder, path),
                "ridge": RIDGE,
                "calibration": None,
                "tuned_on": 0,
            }
            text = store.write_manifest(path, head, ())
        return cls(path, text)

    @contextmanager
    def _edit(self) -> Iterator[Draft]:
        """The present state under the pool's lock; written as one change when the block ends well."""
        with store.alone(self.path):
            self.reload()
            draft = Draft({entry.name: entry for entry in self.entries}, dict(self._head))
            yield draft
            entries, written = in_order(draft.entries.values()), draft.head["format"]
            needs = list(draft.head.get("needs", ()))
            if TENANTS not in needs and any(entry.extra.get("tenant") for entry in entries):
                needs.append(TENANTS)
            head = draft.head | {"format": store.FORMAT, "version": self.version + 1, "needs": needs}
            if written < store.FORMAT:
                store.keep_manifest(self.path, written, self._text)
            self._take(store.write_manifest(self.path, head, entries), head, entries)

    def add(
        self,
        name: str,
        folder: str | Path,
        samples: Sequence[str],
        embed: Embed,
        *,
        replace: bool = False,
        any_base: bool = False,
        terms: bool = True,
        origin: str = "samples",
    ) -> Entry:
        """Check an adapter and put it into the pool, wholly or not at all.

        Args:
            name: unique in the pool: letters, digits, dots, dashes.
            folder: the PEFT folder.
            samples: a few texts of its training data (20 in the paper); kept are embeddings and hashed terms only.
            embed: the pool's embedder.
            replace: take the place of an adapter of that name, whose tenant, state and note stay.
            any_base: accept an adapter whose config names another base model.
            terms: keep hashed n-grams of the samples too (see `route.features` for what they leak).
            origin: what the samples are: "samples" of its training data, "prompts" that somebody wrote for it, or
                sentences of a "description" (`pool.described`), whose wording says nothing: no terms are kept.

        Raises:
            InputError: the name is taken or malformed, or the samples are too few.
            AdapterError: the adapter cannot be used on this base.
            PoolError: the pool cannot be written.
        """
        check_name(name)
        taken = InputError(f"The pool has an adapter {name!r} already. Choose another name, or pass --replace.")
        if not replace and name in self._positions:
            raise taken
        prepared = prepare(self, name, folder, samples, embed, any_base=any_base, terms=terms, origin=origin)
        with self._edit() as draft:
            if name in draft.entries and not replace:
                raise taken
            prepared.keep(self.path)
            draft.entries[name] = entry = inherit(prepared.entry, draft.entries.get(name))
        return entry

    def publish(self, entry: Entry, *, replace: bool = False) -> None:
        """Let an adapter whose files are kept be routed to: a change of the manifest alone.

        Args:
            entry: as it was prepared, with its tenant.
            replace: take the place of an adapter of that name.

        Raises:
            InputError, PoolError: the name is taken; its files are gone, or the pool cannot be written.
        """
        check_name(entry.name)
        with self._edit() as draft:
            if entry.name in draft.entries and not replace:
                raise InputError(f"The pool has an adapter {entry.name!r} already.")
            for folder, content in ((store.ADAPTERS, entry.hash), (store.SAMPLES, entry.samples)):
                if not (self.path / folder / f"{content}.safetensors").exists():
                    raise PoolError(f"The files of {entry.name} are gone, which others may have pruned. Add it anew.")
            draft.entries[entry.name] = entry

    def _write(self, folder: str, content: str, tensors: Mapping[str, Tensor]) -> None:
        store.write_tensors(self.path / folder / f"{content}.safetensors", tensors)

    def remove(self, name: str) -> None:
        """Take an adapter out; its files stay for those who have the pool open, until `prune`."""
        self.index(name)
        with self._edit() as draft:
            draft.entries.pop(name, None)  # another may have removed it meanwhile

    def enable(self, name: str, enabled: bool = True) -> None:
        """Let an adapter be routed to, or not."""
        with self._edit() as draft:
            draft.entries[name] = replace(draft[name], enabled=enabled)

    def prune(self) -> list[Path]:
        """Delete files that no adapter uses; a PoolError if the pool is served. Close other users of it before."""
        refuse_leased(self.path, "delete files")
        with self._edit():
            used = {entry.hash for entry in self.entries} | {entry.samples for entry in self.entries}
            epoch = set() if self.epoch_info is None else {self.epoch_info.key}
            return store.prune(self.path, used | epoch | {self._key(RECIPE)})

    def renew_epoch(self, only: Sequence[str] | None = None) -> EpochInfo:
        """Learn anew what adapters share, and let the pool route by it from now on (`route.epoch`).

        Others may read and change the pool meanwhile: it is locked only to be told of the epoch.

        Args:
            only: names of the adapters to learn from, such as those that are everybody's; default: all.

        Raises:
            InputError: there is none to learn from, or a name that the pool lacks.
            PoolError: the pool cannot be written.
        """
        self.reload()
        some = range(len(self)) if only is None else sorted({self.index(name) for name in only})
        info, kept = epochs.learn(self.samples(some), self.embedder, len(self))
        with self._edit() as draft:
            info.check(self.path, self.embedder)  # another may have embedded all anew meanwhile
            draft.head |= epochs.head_of(info, kept, self.epoch_info)
            epochs.write(self.path, info.key, kept)
        return self.epoch_info or info

    def drop_epoch(self) -> None:
        """Let the pool be fitted from nothing again, at every start and change."""
        with self._edit() as draft:
            draft.head.pop(epochs.FIELD, None)
        self.tune(always=True)

    def tune(self, *, always: bool = False) -> float:
        """Choose ridge and calibration anew if the pool has grown or shrunk by a quarter since; keep statistics.

        In a pool with an epoch they are the epoch's, and stay: see `renew_epoch`.
        """
        if self.epoch_info is None and (always or has_grown(len(self), self.tuned_on)):
            samples = self.samples()
            ridge, found = choose_ridge([own.embeddings for own in samples]), calibrate(samples)
            with self._edit() as draft:
                draft.head |= {"ridge": ridge, "calibration": asdict(found), "tuned_on": len(draft.entries)}
        self.fit()
        return self.ridge

    def reembed(self, samples: Mapping[str, Sequence[str]], embedder: EmbedderInfo, embed: Embed) -> None:
        """Embed all adapters' samples anew, with another embedder; texts come from the caller.

        Raises:
            InputError, PoolError: an adapter's samples are missing; the pool is served. It stays as it was.
        """
        refuse_leased(self.path, "embed anew")
        _need_all(self.names, samples)
        kept = {entry.name: own.terms is not None for entry, own in zip(self.entries, self.samples(), strict=True)}
        found = {name: look_at(name, samples[name], embed, embedder, terms=kept[name]) for name in self.names}
        with self._edit() as draft:
            _need_all(list(draft.entries), found)  # another may have added one meanwhile
            for name, entry in draft.entries.items():
                new = replace(entry, samples=found[name].content_hash(), num_samples=len(found[name]))
                self._write(store.SAMPLES, new.samples, found[name].tensors())
                draft.entries[name] = inherit(new, entry, but=OF_SAMPLES)
            draft.head["embedder"] = write_embedder(embedder, self.path)
            if draft.head.pop(epochs.FIELD, None):
                _log.warning("%s has no epoch any more: it was of another embedder. %s", self.path, epochs.RENEW)
        self.tune(always=True)

    def check(self) -> Iterator[tuple[Entry, str]]:
        """Read every adapter again; yields each with what is wrong, "" if nothing is."""
        for entry in self.entries:
            try:
                self.factors(entry.hash)
                check_samples(self._samples(entry).embeddings, entry.name)
                wrong = ""
            except (PoolError, InputError) as error:
                wrong = str(error)
            yield entry, wrong


def _need_all(names: Sequence[str], samples: Mapping[str, object]) -> None:
    if missing := [name for name in names if name not in samples]:
        raise InputError(
            f"Re-embedding needs the samples of every adapter; none for {', '.join(missing)}. "
            f"Put them at DIR/<adapter>.jsonl or DIR/<adapter>/samples.jsonl."
        )
