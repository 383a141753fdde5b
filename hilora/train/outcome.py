"""What a training leaves, whole or not at all, and where it works until then.

OUT.training/                    -> OUT/                               an adapter, an embedder
POOL/trained/.training-NAME      -> POOL/trained/NAME.safetensors      what a method needs trained
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.base.outputs import alone, check_file, check_folder, refuse_held
from hilora.errors import InputError
from hilora.pool.trained import TRAINED, Trained, trained_path
from hilora.pool.view import Entry, PoolView
from hilora.train.loop import LOG
from hilora.train.recipe import HubRecipe, Schedule
from hilora.train.tasks import Rows, hash_tasks

if TYPE_CHECKING:
    from torch import Tensor


def refuse_existing(out: Path, again: str = "train") -> None:
    """Refuse to make a folder that is there, or could not be made, or that another run makes.

    Args:
        out: the folder.
        again: what would make it again.

    Raises:
        InputError: it exists, its place will not do, or another run is making it.
    """
    check_folder(out.parent)
    refuse_held(out)
    _refuse_made(out, again)


def _refuse_made(out: Path, again: str) -> None:
    if out.exists():
        raise InputError(f"{out} exists. Choose another --out, or delete it to {again} again.")


@contextmanager
def work_folder(out: Path, again: str = "train") -> Iterator[Path]:
    """Where a folder is made before it takes its place, by one run at a time. Arguments as of `refuse_existing`.

    Raises:
        InputError: the folder is there meanwhile, or another run makes it.
    """
    with alone(out):
        _refuse_made(out, again)
        work = out.with_name(out.name + ".training")
        work.mkdir(parents=True, exist_ok=True)
        yield work


def write_recipe(folder: Path, recipe: Schedule | HubRecipe, **more: Any) -> None:
    """`recipe.json`: how it was made, and what came of it."""
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe) | more, indent=1) + "\n")


def finish(folder: Path, out: Path) -> Path:
    """Put a folder that was made inside a work folder in its place, with the log; the work folder goes."""
    work = folder.parent
    shutil.copy(work / LOG, folder / LOG)
    folder.rename(out)
    shutil.rmtree(work)
    return out


def part_work(pool: PoolView, name: str) -> Path:
    """Where a part beside a pool is trained before it is saved."""
    return pool.path / TRAINED / f".training-{name}"


def check_part(pool: PoolView, kind: str) -> Path:
    """Where a part will be saved, before the work that leads to it.

    Raises:
        InputError: the name will not do, the place cannot be written, or another run is training it.
    """
    path = trained_path(pool.path, kind)
    check_file(path)
    refuse_held(path)
    return path


@contextmanager
def held_part(pool: PoolView, kind: str) -> Iterator[None]:
    """Train a part of a pool, from its work folder to its place, by one run at a time.

    Raises:
        InputError: as `check_part`.
    """
    with alone(check_part(pool, kind)):
        yield


def save_part(
    pool: PoolView,
    kind: str,
    tensors: Mapping[str, Tensor],
    entries: Sequence[Entry],
    tasks: Mapping[str, Rows],
    recipe: Schedule | HubRecipe,
    **more: Any,
) -> Path:
    """Write a trained part beside a pool.

    Args:
        pool: the pool.
        kind: of the part; names the file.
        tensors: its weights; what stands before a "|" in their names is a site.
        entries: the adapters that it was trained with.
        tasks: adapter name -> the lines that it was trained on.
        recipe, more: how, and what came of it.
    """
    sites = {key.split("|")[0] for key in tensors}
    return Trained(
        kind,
        tensors,
        {entry.name: entry.hash for entry in entries},
        {site: shape for site, shape in pool.base.sites.items() if site in sites},
        pool.version,
        hash_tasks(tasks),
        asdict(recipe) | more,
    ).save(pool.path)


def run_key(tasks: Mapping[str, Rows], entries: Sequence[Entry]) -> str:
    """Of the data and the adapters that an outcome depends on: a run goes on with the same ones only."""
    return " ".join([hash_tasks(tasks), *(entry.hash for entry in entries)])
