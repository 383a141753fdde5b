"""Which compositions requests bring: those that this process made itself, and never one that a client wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from hilora.base.fingerprint import describe_base
from hilora.errors import MismatchError
from hilora.gateway.composition import needed_rank
from hilora.pool.folder import PoolFolder
from hilora.vllm.folders import Folders
from hilora.vllm.wire import FIELD, Composition, WireError, decode, encode

_log = logging.getLogger(__name__)


class Sealed(dict[str, Any]):
    """A composition's value that `params` made; JSON gives dicts of no such class."""


@dataclass(frozen=True)
class _Asked:
    """What the server itself has decided for an HTTP request."""

    composition: Composition | None


_asked: ContextVar[_Asked | None] = ContextVar("hilora_asked", default=None)


@contextmanager
def asking(composition: Composition | None) -> Iterator[None]:
    """Requests that are made inside are an HTTP client's, and use this composition, whatever they bring."""
    token = _asked.set(_Asked(composition))
    try:
        yield
    finally:
        _asked.reset(token)


def seal(composition: Composition | None) -> dict[str, Any] | None:
    """The `extra_args` of sampling parameters whose request is to use a composition; None for the base alone."""
    return None if composition is None else {FIELD: Sealed(encode(composition))}


def salted(salt: str | None, composition: Composition | None) -> str | None:
    """What keeps the keys and values of prompts under one composition from those under another.

    A client's own salt is told apart too, so that none can be written that is a composition's.
    """
    if composition is None:
        return f"client {salt}" if salt else salt
    return f"composition {composition.digest} {salt or ''}"


@dataclass(frozen=True)
class Front:
    """Takes compositions in.

    Attributes:
        folders: of adapters.
        num_places: adapters of a composition, at most.
    """

    folders: Folders
    num_places: int

    def check_start(self, model: str, room: tuple[int, int] | None) -> None:
        """Whether the engine that starts can serve the pool.

        Args:
            model: its name or path.
            room: max_loras and max_lora_rank; None without LoRA.

        Raises:
            MismatchError: it has no room for the pool's adapters, or is another base than theirs.
        """
        pool = PoolFolder.open(self.folders.pool)
        rank = max((entry.rank for entry in pool.entries), default=1)
        if room is None:
            raise MismatchError(
                f"HILORA_POOL names {pool.path}, and vLLM was started without LoRA. Start it with --enable-lora "
                f"--max-loras {self.num_places} --max-lora-rank {needed_rank(rank)}, or without HILORA_POOL."
            )
        if rank > room[1]:
            names = [entry.name for entry in pool.entries if entry.rank > room[1]]
            raise MismatchError(
                f"The pool at {pool.path} has adapters of rank {rank} ({', '.join(names[:3])}), and vLLM has room "
                f"for rank {room[1]}. Start it with --max-lora-rank {needed_rank(rank)}."
            )
        found = describe_base(model)
        if found.sketch and not pool.base.is_same(found):
            raise MismatchError(
                f"The pool at {pool.path} was made for {pool.base.name!r}, and vLLM serves {model!r}, whose modules, "
                "weights or prompt template differ. Serve that base, or name another pool."
            )

    def take(self, extra: dict[str, Any] | None, others: bool) -> Composition | None:
        """The composition that a request is to use.

        Args:
            extra: `extra_args` of its sampling parameters.
            others: whether it also asks for a LoRA of vLLM's own.

        Raises:
            WireError: it brings one that was not made here, or that makes no sense.
        """
        value, asked = (extra or {}).get(FIELD), _asked.get()
        if asked is not None:
            if value is not None:
                _log.warning("A client sent a composition, which was dropped: compositions are the server's.")
            composition = asked.composition
        elif value is None:
            return None
        elif isinstance(value, Sealed):
            composition = decode(value)
        else:
            raise WireError(
                f"extra_args[{FIELD!r}] was not made by this process. Make sampling parameters with "
                "hilora.vllm.params; over HTTP, ask for model 'auto'."
            )
        if composition is not None and others:
            raise WireError("A request uses a LoRA of its own or a composition; got both. Leave one of them out.")
        return composition

    def check(self, composition: Composition, max_loras: int, max_lora_rank: int) -> None:
        """Whether the engine has room for it; adapters that were never loaded are made ready.

        Raises:
            WireError: it has not, or an adapter is gone.
        """
        most, count = min(max_loras, self.num_places), len(composition.parts)
        if count > most:
            raise WireError(
                f"The composition uses {count} adapters, and {most} are served at once. Start vLLM with --max-loras "
                f"{count} or more, and HILORA_VLLM_PLACES={max(count, self.num_places)}; or ask for fewer."
            )
        if (rank := max(part.rank for part in composition.parts)) > max_lora_rank:
            raise WireError(
                f"An adapter of rank {rank} was asked for, and vLLM has room for {max_lora_rank}. Start it with a "
                f"--max-lora-rank of at least {rank}."
            )
        self.folders.ensure(composition.parts)
