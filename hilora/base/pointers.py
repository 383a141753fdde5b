"""Files that stand for others which Git LFS has still to fetch, as in a clone made without it."""

from __future__ import annotations

from pathlib import Path

from hilora.errors import ModelError

LFS_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".gguf", ".jinja", ".txt")
LFS_LONGEST = 1024  # a pointer has about 130 bytes


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder with files that git-lfs has still to fetch.

    Raises:
        ModelError: names the first of them.
    """
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in LFS_SUFFIXES and is_pointer(file):
            raise ModelError(
                f"{file} is a Git LFS pointer, not the file itself. Run in that folder: git lfs install; git lfs pull"
            )


def is_pointer(file: Path) -> bool:
    """Whether a file stands for one that Git LFS keeps elsewhere."""
    if not file.is_file() or file.stat().st_size > LFS_LONGEST:
        return False
    return file.read_bytes().startswith(b"version https://git-lfs")
