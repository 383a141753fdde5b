"""Everything that hilora refuses, as one tree; each message says what, got, expected, remedy.

HiloraError
├── AdapterError       an adapter folder that cannot be used, or not with this base model
├── PoolError          a pool that cannot be opened, read or changed
│   └── MismatchError  a pool made for another base model, embedder or version
├── ModelError         a base model or embedder that cannot be loaded or attached to
└── InputError         a prompt, option or name that the caller has to change
    └── UnknownNameError   with the nearest known name
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HiloraError(Exception):
    """Base of all errors that hilora raises on purpose."""


class AdapterError(HiloraError):
    """An adapter cannot be read, or has no exact form as rank-one components of this base."""


class PoolError(HiloraError):
    """A pool folder cannot be opened, read or changed."""


class MismatchError(PoolError):
    """The pool was made for something else than it is used with."""


class ModelError(HiloraError):
    """A base model or an embedder cannot be loaded, or does not fit what is asked of it."""


class InputError(HiloraError):
    """The caller's prompt, option or name has to change."""


class UnknownNameError(InputError):
    """A name that is not known: says what it is a name of, which ones are known, and the nearest."""

    def __init__(self, what: str, got: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(got, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        super().__init__(f"Unknown {what} {got!r}.{hint} Known: {shown or 'none'}.")
