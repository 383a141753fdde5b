"""What a backend can do, found out by trying; each thing that it cannot is a line that names a setting to change."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch

from hilora.gateway.backend import Backend
from hilora.gateway.composition import DIGITS, PREFIX, RANKS, needed_rank
from hilora.gateway.folder import NAME, AdapterFolder
from hilora.gateway.told import DownError, UnloadedError, error_of
from hilora.methods.method import Method
from hilora.pool.view import PoolView
from hilora.route.oracle import Oracle
from hilora.route.retriever import Retriever
from hilora.serve.faults import ServiceError
from hilora.serve.journal import LOG

NOBODY = f"{PREFIX}{'0' * DIGITS}"
"""A name that no adapter has."""
ANSWER = 60.0
"""Seconds for one token, of a backend that may have much to do."""
AGAIN = 60.0
"""Seconds after which a backend that loads nothing is tried again."""


@dataclass(frozen=True)
class Needs:
    """What a backend has to be able to do.

    Attributes:
        base: name of the pool's base model.
        site: one of its modules that adapters change; "" where the pool is empty.
        into, out: its widths.
        single: the largest rank of an adapter.
        composed: the largest rank of a composition; 0 where methods use one adapter for a prompt.
    """

    base: str
    site: str
    into: int
    out: int
    single: int
    composed: int

    @property
    def rank(self) -> int:
        """The largest rank of all."""
        return max(self.single, self.composed)


def uses_one(method: Method) -> bool:
    """Whether a prompt has one adapter at most."""
    router = method.router
    return router is None or isinstance(router, Oracle) or (isinstance(router, Retriever) and router.k == 1)


def needs_of(view: PoolView, methods: Sequence[Method], ranks: int) -> Needs:
    """What a pool and methods need.

    Args:
        view: the pool.
        methods: that are served.
        ranks: of a composition, at most.
    """
    each = [entry.rank for entry in view.entries]
    single = max((rank for rank in each if rank <= ranks), default=0)
    composed = 0 if all(uses_one(method) for method in methods) else min(ranks, sum(each))
    if not view.entries:
        return Needs(view.base.name, "", 0, 0, 0, 0)
    site, (down, up) = next(iter(sorted(view.factors(view.entries[0].hash).items())))
    return Needs(view.base.name, site, down.shape[1], up.shape[0], single, composed)


class Checks:
    """Finds out what backends can do, whenever they come up or the pool needs more.

    Args:
        folder: of adapters.
        at: its path as the backends see it.
        needs: says what they need to be able to do.
    """

    def __init__(self, folder: AdapterFolder, at: str, needs: Callable[[], Needs]) -> None:
        self.folder, self.at, self.needs = folder, at.rstrip("/"), needs

    async def __call__(self, backend: Backend) -> None:
        """Find out about one that is up, if it is not known."""
        needs = self.needs()
        late = not backend.can_load and time.monotonic() - backend.checked_at > AGAIN
        if backend.checked_for == needs and not late:
            return
        backend.can_load, backend.max_rank = True, None
        try:
            problems = await self._found(backend, needs)
        except DownError as error:
            LOG.warning("backend %d could not be looked at: %s", backend.place, error)
            return
        for line in problems:
            if line not in backend.problems:
                LOG.warning("%s", line)
        backend.problems, backend.checked_for, backend.checked_at = problems, needs, time.monotonic()

    async def _try_rank(self, backend: Backend, needs: Needs, rank: int) -> None:
        """Have it load, and forget, an adapter of zeros.

        Raises:
            UnloadedError: it does not.
            DownError: it does not answer.
        """
        told = f"zeros {needs.site} {needs.into} {needs.out} {rank}"
        name = PREFIX + hashlib.sha256(told.encode()).hexdigest()[:DIGITS]
        zeros = {needs.site: (torch.zeros(rank, needs.into), torch.zeros(needs.out, rank))}
        with self.folder.using(name):
            await asyncio.to_thread(self.folder.write, name, zeros, backend.models.root or needs.base)
            await backend.load(name, f"{self.at}/{name}")
            if backend.resolves:
                await self._try_resolving(backend, name)
            await backend.unload(name)

    async def _try_resolving(self, backend: Backend, name: str) -> None:
        """Ask for an adapter that is in the folder.

        Raises:
            UnloadedError: it is not found there.
            DownError: it does not answer.
        """
        status, message = await self._asked(backend, name)
        if status != 200:
            raise UnloadedError(
                f"Backend {backend.place} does not find, or not load, what is in the folder ({status}: {message}): "
                f"start vLLM with VLLM_LORA_RESOLVER_CACHE_DIR={self.at}, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                "--enable-lora and a --max-lora-rank that is large enough; or the gateway without --resolve."
            )

    async def _found(self, backend: Backend, needs: Needs) -> list[str]:
        """Lines, of what is wrong with a backend.

        Raises:
            DownError: it does not answer.
        """
        found = []
        ours, theirs = (PurePath(name).name.lower() for name in (needs.base, backend.models.root))
        if ours != theirs:
            found.append(
                f"Backend {backend.place} serves {theirs!r}; the pool's adapters are for {ours!r}. If these differ, "
                "start it with --model of the pool's base."
            )
        if (await self._asked(backend, NOBODY))[0] == 200:
            backend.can_load = False
            backend.loaded.clear()
            found.append(
                f"Backend {backend.place} answers for adapters that it does not have: start vLLM without "
                "VLLM_SKIP_MODEL_NAME_VALIDATION."
            )
            return found
        if not needs.site:
            return found
        try:
            await self._try_ranks(backend, needs)
        except UnloadedError as error:
            found.append(f"{error}{_remedy(backend, needs, error)}")
        except (ServiceError, OSError) as error:
            found.append(f"No adapter can be written into {self.folder.path}: {error}")
        return found

    async def _asked(self, backend: Backend, model: str) -> tuple[int, str]:
        """Status and error of a short request.

        Raises:
            DownError: it does not answer.
        """
        words = {"model": model, "prompt": "a", "max_tokens": 1}
        status, content = await backend.connections.ask("POST", "/v1/completions", ANSWER, words)
        return status, error_of(content)[1]

    async def _try_ranks(self, backend: Backend, needs: Needs) -> None:
        """Have it load adapters of zeros: of the largest rank, then of smaller ones, until it takes one.

        Raises:
            UnloadedError: it did not take the first; `max_rank` of the backend says which it took.
            DownError: it does not answer.
        """
        first: UnloadedError | None = None
        for rank in (needs.rank, *(each for each in reversed(RANKS) if each < needs.rank)):
            if backend.max_rank is not None and rank > backend.max_rank:
                continue
            try:
                await self._try_rank(backend, needs, rank)
                break
            except UnloadedError as error:
                if first is None and error.max_rank is not None:
                    first = error
                    continue
                backend.can_load = False  # nor will a smaller one be taken
                if first is None:
                    raise
                why = f"{first} And then it takes no smaller one either ({error}): it may have to be started again."
                raise UnloadedError(why, max_rank=first.max_rank) from error
        if first is not None:
            raise first


def _remedy(backend: Backend, needs: Needs, error: UnloadedError) -> str:
    """What to do where ranks are the matter, and what works without."""
    listed = sum(1 for name in backend.loaded if NAME.fullmatch(name))
    without = f" Until then it serves the base model and {listed} adapters that it has loaded."
    if error.max_rank is None:
        return without
    smaller = max((rank for rank in RANKS if rank <= error.max_rank), default=0)
    alone = " Adapters one at a time work." if needs.single <= error.max_rank else ""
    return (
        f" Start vLLM with --max-lora-rank {needed_rank(needs.rank)}, or the gateway with --max-lora-rank {smaller}."
        f"{alone}"
    )
