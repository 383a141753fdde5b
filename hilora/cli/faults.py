"""What goes wrong around hilora, told in one line: disks, memory, packages. Its own faults are not hidden."""

from __future__ import annotations

import errno
from collections.abc import Callable

from hilora.errors import HiloraError

FULL = "Free some space there, or choose another place."
CLOSED = "Choose a place that you may read and write, or change its permissions."
PATH = "Check the path."
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), CLOSED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), PATH),
}
"""Error number -> what to do."""
EXTRAS = {
    "peft": "train",
    "cma": "train",
    "gguf": "default",
    "sklearn": "merge",
    "sentence_transformers": "embedders",
    "faiss": "index",
    "rouge_score": "evaluate",
    "sacrebleu": "evaluate",
    "matplotlib": "reproduce",
    "lm_eval": "lm-eval",
    "bitsandbytes": "quantize",
}
"""Package -> the extra that brings it."""
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def tell(error: BaseException) -> str | None:
    """One line for what a user can mend; None for anything else.

    Args:
        error: what a command ended with.
    """
    return next((told for kind in KINDS if (told := kind(error)) is not None), None)


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: some packages make another of it while they are imported."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(". ")


def _refused(error: BaseException) -> str | None:
    return " ".join(str(error).split("\n")) if isinstance(error, HiloraError) else None


def _disk(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return f"{_first(error)}. {PATH}"
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{error.strerror}{f': {names}' if names else ''}. {REMEDIES.get(error.errno, '')}".strip()


def _tensors(error: BaseException) -> str | None:
    """Errors of safetensors, known by name: its package is not loaded for them."""
    if type(error).__name__ != "SafetensorError":
        return None
    full = "os error 28" in str(error) or "os error 122" in str(error)
    remedy = FULL if full else "A file of weights is damaged or cannot be written: get or make it again."
    return f"{_first(error)}. {remedy}"


def _package(error: BaseException) -> str | None:
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else "hilora"
    if name == "hilora":
        return None
    extra = EXTRAS.get(name)
    run = f"'hilora[{extra}]'" if extra else f"--upgrade {name or 'hilora'}"
    return f"{_first(error)}. Run: pip install {run}"


def _memory(error: BaseException) -> str | None:
    known = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
    if not known and not isinstance(error, MemoryError):
        return None
    return (
        f"There is not enough memory: {_first(error)}. Give fewer prompts or examples at a time (--batch-size, "
        f"--batch), shorter ones, --dtype bf16, or a smaller model."
    )


KINDS: tuple[Callable[[BaseException], str | None], ...] = (_refused, _disk, _tensors, _package, _memory)
