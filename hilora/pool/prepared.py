"""An adapter that has been checked, and is in no pool yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hilora.errors import PoolError, UnknownNameError
from hilora.pool import store
from hilora.pool.canonical import canonical_factors
from hilora.pool.described import DESCRIPTION
from hilora.pool.folder import PoolFolder
from hilora.pool.looked import Embed, look_at
from hilora.pool.peft import read_adapter
from hilora.pool.view import Entry, PoolView
from hilora.route.features import Features
from hilora.types import Factors

ORIGINS = ("samples", "prompts", DESCRIPTION)


@dataclass(frozen=True)
class Prepared:
    """An adapter that has been checked, and is in no pool yet."""

    entry: Entry
    factors: Factors
    features: Features

    def keep_canonical(self, pool: Path) -> None:
        """Work out its canonical ROCs and keep them, so that whoever serves it need not.

        Raises:
            PoolError: the pool cannot be written.
        """
        with store.explained(f"write to {pool}"):
            store.write_canonical(pool, self.entry.hash, canonical_factors(self.factors))

    def files(self, pool: Path) -> list[Path]:
        """Where a pool keeps it."""
        kept = (
            (store.ADAPTERS, self.entry.hash),
            (store.CANONICAL, self.entry.hash),
            (store.SAMPLES, self.entry.samples),
        )
        return [pool / folder / f"{content}.safetensors" for folder, content in kept]

    def keep_all(self, pool: Path) -> None:
        """Write its files and keep its canonical ROCs; where that fails, what is new of them is deleted.

        Raises:
            PoolError: the pool cannot be written.
        """
        new = [path for path in self.files(pool) if not path.exists()]
        try:
            with store.explained("write to the pool"):
                self.keep(pool)
            self.keep_canonical(pool)
        except PoolError:
            with store.alone(pool):  # nobody names them meanwhile
                named = {content for each in PoolFolder.open(pool).entries for content in (each.hash, each.samples)}
                for path in new:
                    if path.stem not in named:
                        path.unlink(missing_ok=True)
            raise

    def keep(self, pool: Path) -> None:
        """Write its files, which are named by their contents; nobody reads them before a manifest names them.

        Raises:
            PoolError: the pool cannot be written.
        """
        store.write_factors(pool / store.ADAPTERS / f"{self.entry.hash}.safetensors", self.factors)
        store.write_tensors(pool / store.SAMPLES / f"{self.entry.samples}.safetensors", self.features.tensors())


def prepare(
    pool: PoolView,
    name: str,
    folder: str | Path,
    samples: Sequence[str] | Features,
    embed: Embed | None,
    *,
    any_base: bool = False,
    terms: bool = True,
    origin: str = "samples",
) -> Prepared:
    """Check an adapter as `Pool.add` does, and change nothing.

    Args:
        pool: it is for.
        name, folder, embed, any_base, terms, origin: as for `Pool.add`.
        samples: texts, or what is kept of them where somebody has looked at them already: `embed` is not needed then.

    Raises:
        AdapterError: the adapter cannot be used on this base.
        InputError: the samples are too few.
    """
    if origin not in ORIGINS:
        raise UnknownNameError("origin of samples", origin, ORIGINS)
    adapter = read_adapter(Path(folder), name=name, sites=pool.base.sites, base=pool.base)
    if not any_base:
        pool.base.check_adapter(name, adapter.base_model)
    found = samples
    if not isinstance(found, Features):
        assert embed is not None
        found = look_at(name, found, embed, pool.embedder, terms=terms and origin != DESCRIPTION)
    entry = Entry(
        name=name,
        hash=adapter.hash,
        samples=found.content_hash(),
        rank=adapter.rank,
        num_sites=len(adapter.factors),
        num_parameters=sum(d.numel() + u.numel() for d, u in adapter.factors.values()),
        base_model=adapter.base_model,
        num_samples=len(found),
        enabled=True,
        added=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=origin,
    )
    return Prepared(entry, adapter.factors, found)
