"""Who comes in, and what he may do."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from hilora.errors import InputError
from hilora.serve.asked import Caller
from hilora.serve.faults import BusyError, ForbiddenError, UnauthorizedError
from hilora.serve.state import State

MINUTE = 60.0
KNOWN = 5.0
"""Seconds for which a token that was good is not looked up again."""


@dataclass(eq=False)
class Doorkeeper:
    """Says who asks.

    Args:
        state: knows the tokens.
        is_open: nobody needs a token: whoever comes may do everything, as no tenant.
        per_minute: requests of one token; 0 for any number.
    """

    state: State
    is_open: bool
    per_minute: int = 0
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, tuple[float, Caller]] = field(default_factory=dict)
    _came: defaultdict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def __call__(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            UnauthorizedError: no token, or one that is not known.
            BusyError: too many requests within a minute.
        """
        if self.is_open:
            return Caller()
        secret = secret_of(request)
        if not secret:
            raise UnauthorizedError("A token is needed: Authorization: Bearer hlr_...", "invalid_api_key")
        caller = self._caller(secret)
        self._count(caller)
        return caller

    async def at_once(self, request: Request) -> Caller:
        """The same in an event loop: only whoever was not let in a moment ago waits for the disk. Raises likewise."""
        key = hashlib.sha256(secret_of(request).encode()).hexdigest()
        if self.is_open or self.clock() <= self._known.get(key, (0.0, None))[0]:
            return self(request)
        return await asyncio.to_thread(self, request)

    def _caller(self, secret: str) -> Caller:
        now, key = self.clock(), hashlib.sha256(secret.encode()).hexdigest()  # no secret stays in memory
        until, caller = self._known.get(key, (0.0, None))
        if caller is None or now > until:
            token = self.state.token(secret)
            if token is None:
                self._known.pop(key, None)
                raise UnauthorizedError("This token is not known here.", "invalid_api_key")
            caller = Caller(token.tenant, token.scopes, token.id)
            self._known[key] = now + KNOWN, caller
        return caller

    def _count(self, caller: Caller) -> None:
        if not self.per_minute:
            return
        now, came = self.clock(), self._came[caller.token]
        while came and came[0] <= now - MINUTE:
            came.popleft()
        if len(came) >= self.per_minute:
            after = came[0] + MINUTE - now
            raise BusyError(f"More than {self.per_minute} requests a minute.", after, "rate_limit_exceeded")
        came.append(now)


def secret_of(request: Request) -> str:
    """What a request brings as its token; "" for none."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def need(caller: Caller, scope: str) -> None:
    """Refuse who may not.

    Raises:
        ForbiddenError: his token is not for that.
    """
    if scope not in caller.scopes:
        raise ForbiddenError(f"This token is not for {scope!r}.", "insufficient_scope")


def check_bind(host: str, state: State) -> bool:
    """Whether a server at an address may serve without tokens.

    Raises:
        InputError: others reach the address, and there are no tokens.
    """
    has_tokens = any(token.revoked is None for token in state.tokens())
    if not is_loopback(host) and not has_tokens:
        raise InputError(
            f"{host} is reached by others, and this pool has no tokens. Add one: hilora serve token add --pool ... ; "
            "or listen on 127.0.0.1."
        )
    return not has_tokens


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
