"""A pool made of another one: a copy that is changed, and is there only once it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hilora import Pool


@contextmanager
def copied(source: Path, out: Path) -> Iterator[Pool]:
    """A copy to change, which becomes `out` when all went well.

    Raises:
        FileExistsError: `out` is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already. Delete it, or name another folder.")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    yield Pool.open(part)
    part.replace(out)
