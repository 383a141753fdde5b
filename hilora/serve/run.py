"""A server's process: its parts put together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.methods.method import Method
from hilora.pool.lease import leased
from hilora.serve.access import Doorkeeper, check_bind
from hilora.serve.api_adapters import adapter_routes
from hilora.serve.app import make_app
from hilora.serve.checker import Checker
from hilora.serve.connections import room
from hilora.serve.desk import GROWING, PoolDesk
from hilora.serve.journal import LOG, write_down
from hilora.serve.limits import Limits
from hilora.serve.listening import Orderly, bound, config_of
from hilora.serve.publish import Publisher
from hilora.serve.renew import Renewal
from hilora.serve.state import State
from hilora.serve.state_read import ReadState
from hilora.serve.uploads import Uploads
from hilora.serve.watch import Watch

READ_ONLY = (
    "The pool's folder cannot be written. It is served as it is; nobody who may write there is kept from deleting "
    "files of it meanwhile, and who did what is in this log alone."
)


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        host, port: where it listens.
        uploads: whether adapters may be uploaded.
        methods: that requests may name; None for those to which a new adapter is like all others.
        limits: bounds.
        log_prompts: write prompts and answers to the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uploads: bool = True
    methods: Sequence[str] | None = None
    limits: Limits = field(default_factory=Limits)
    log_prompts: bool = False

    def check(self, pool: Path, method: Method) -> State:
        """Refuse what does not go together, before anything is loaded; what is kept beside a pool.

        Raises:
            InputError: a method that does not know adapters that come later, beside uploads; an address that others
                reach, without tokens.
            PoolError: the state cannot be read, or, beside uploads, not be written.
        """
        asked = [method.name, *(self.methods or ())]
        fixed = [name for name in asked if name not in (*GROWING, "oracle", "base")]
        if self.uploads and fixed:
            raise InputError(
                f"{fixed[0]} touches the whole pool for every token, or was trained for the adapters of now, so it "
                f"cannot serve beside uploads. Give --no-uploads, or one of: {', '.join(GROWING)}."
            )
        state = State(pool) if self.uploads else ReadState(pool)
        check_bind(self.host, state)
        return state


def serve(router: HiLoRA, settings: Settings, state: State, say: Callable[[str], Any]) -> None:
    """Serve until SIGTERM or Ctrl-C; then what runs may end.

    Args:
        router: the model and the pool.
        settings: the rest; `state`: as they gave it for this pool.
        say: tells where it listens.
    """
    limits, pool = settings.limits, router.planner.pool
    folder = Path(pool.path)
    keeper = Doorkeeper(state, check_bind(settings.host, state), limits.requests_per_minute)
    methods = GROWING if settings.methods is None else settings.methods
    desk = PoolDesk(router, limits, methods, log_prompts=settings.log_prompts)
    watch = Watch(folder, pool.version, desk.change)
    watch.asked = desk.look_for_mended
    held, closed, others = ExitStack(), [watch.close], list[APIRouter]()
    if settings.uploads:
        renewal = Renewal(folder, desk.meters)
        watch.seen = renewal.consider
        publisher = Publisher(folder, limits, watch.look, lambda: desk.edition.view)
        uploads = Uploads(publisher, state, limits, Checker(pool=folder), desk.meters)
        uploads.open()
        closed = [uploads.close, *closed, renewal.close]
        others.append(adapter_routes(uploads, keeper))
        watch.look()
    else:
        held.enter_context(leased(folder))
    app = make_app(desk, limits, keeper, others=others, closed=closed, local=keeper.is_open)
    write_down()
    if not os.access(folder, os.W_OK):
        LOG.warning(READ_ONLY, extra={"pool": str(folder)})
    with held, bound(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        say(f"http://{host}:{port}  (a page at /ui, API at /v1, documentation at /docs)")
        limits = replace(limits, connections=room(limits.connections, listening.fileno()))
        asyncio.run(Orderly(config_of(app, limits)).serve(sockets=[listening]))
