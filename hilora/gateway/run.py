"""A gateway's process: its parts put together, backends looked at, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hilora.base.embed import Embedder
from hilora.errors import InputError
from hilora.gateway.app import make_app
from hilora.gateway.backend import Backend
from hilora.gateway.checks import Checks, Needs, needs_of
from hilora.gateway.chooser import Chooser
from hilora.gateway.fleet import Fleet
from hilora.gateway.folder import AdapterFolder
from hilora.gateway.line import Line
from hilora.gateway.meters import Meters
from hilora.gateway.parts import Room, check_method
from hilora.gateway.proxy import Proxy
from hilora.methods.lookup import get_method
from hilora.pool.lease import leased
from hilora.pool.memory import parse_bytes
from hilora.pool.view import PoolView
from hilora.serve.access import Doorkeeper, check_bind
from hilora.serve.connections import room
from hilora.serve.journal import write_down
from hilora.serve.limits import Limits
from hilora.serve.listening import Orderly, bound, config_of
from hilora.serve.state_read import ReadState
from hilora.serve.watch import Watch

KEY = "HILORA_BACKEND_KEY"
"""Environment variable with the key that backends want."""
LIMITS = Limits(running=256, body=32 << 20, depth=100)
"""A body may hold images, and tools with schemas."""


@dataclass(frozen=True)
class Settings:
    """What a gateway is told.

    Attributes:
        backends: URLs of vLLM servers.
        adapters: folder that it writes and they read.
        adapters_at: path of that folder as they see it; "" for the same.
        resolves: they load by themselves what they are asked for.
        method, options, methods: how prompts are routed, as for `HiLoRA`, and what else requests may name.
        levels: of the grid of weights; None for weights as they are.
        ranks: sum of the ranks of a prompt's adapters, at most: vLLM's max_lora_rank.
        compositions: adapters that a backend has requests for at once; None for what it says of itself.
        adapter_bytes: of the folder, in bytes or as "10GB".
        host, port: where it listens.
        limits: bounds; `running` is of each backend.
        key: that the backends want; None for the environment's.
    """

    backends: Sequence[str]
    adapters: Path
    adapters_at: str = ""
    resolves: bool = False
    method: str = "selection"
    options: dict[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = ()
    levels: int | None = 4
    ranks: int = 64
    compositions: int | None = None
    adapter_bytes: int | str = "10GB"
    host: str = "127.0.0.1"
    port: int = 8080
    limits: Limits = LIMITS
    key: str | None = None


class Gateway:
    """A gateway, put together; to be opened in the event loop that serves it.

    Args:
        view: the pool.
        settings: the rest.
        embedder: the pool's own; default: loaded here.

    Attributes:
        app: what is served.
        fleet: the backends.

    Raises:
        InputError: a setting makes no sense, or others reach the address and there are no tokens.
        PoolError: the pool cannot be read.
    """

    def __init__(self, view: PoolView, settings: Settings, embedder: Embedder | None = None) -> None:
        if not settings.backends:
            raise InputError("A gateway needs a --backend: the URL of a vLLM server. Got none.")
        self.settings, limits = settings, settings.limits
        state = ReadState(view.path)
        keeper = Doorkeeper(state, check_bind(settings.host, state), limits.requests_per_minute)
        key = settings.key or os.environ.get(KEY) or None
        told: dict[str, Any] = {"key": key, "running": limits.running, "resolves": settings.resolves}
        backends = [Backend(place, url, **told) for place, url in enumerate(settings.backends)]
        folder = AdapterFolder(settings.adapters, parse_bytes(settings.adapter_bytes), limits.deadline)
        self.chooser = Chooser(
            view,
            settings.method,
            settings.options,
            settings.methods,
            embedder=embedder,
            check=partial(check_method, whole=True),
            room=Room(ranks=settings.ranks),
            waiting=limits.waiting,
        )
        self._needs: tuple[PoolView, Needs] | None = None
        self.line, self.meters = Line(backends, limits.waiting, settings.compositions), Meters()
        at = settings.adapters_at or str(folder.path)
        checks = Checks(folder, at, lambda: self.needs)
        self.fleet = Fleet(backends, self.line, folder, at, view.base.name, limits.deadline, checks, self.meters)
        self.watch = Watch(view.path, view.version, self.chooser.change)
        self.watch.asked = self.chooser.look_for_mended
        proxy = Proxy(self.chooser, self.fleet, limits, self.meters, settings.levels)
        self.app = make_app(proxy, keeper, self.close, local=keeper.is_open)
        watch(self.meters, self.fleet, self.line)

    @property
    def needs(self) -> Needs:
        """What backends have to be able to do, for the pool as it is now."""
        view = self.chooser.view
        if self._needs is None or self._needs[0] is not view:
            own = self.settings.method, self.settings.options
            methods = [get_method(name, **(own[1] if name == own[0] else {})) for name in self.chooser.methods]
            self._needs = view, needs_of(view, methods, self.settings.ranks)
        return self._needs[1]

    async def open(self, say: Callable[[str], Any]) -> None:
        """Look at the backends; those that are down are served by when they come up.

        Args:
            say: tells what is wrong.

        Raises:
            InputError: a method puts adapters together, and no backend takes these.
        """
        await self.fleet.open()
        there = [backend for backend in self.fleet.backends if backend.is_there]
        for backend in self.fleet.backends:
            if not backend.is_there:
                say(f"Backend {backend.place} is down; it is used when it comes up.")
            for line in backend.problems:
                say(line)
        rank = self.needs.composed
        if rank and there and not any(backend.takes("", rank) for backend in there):
            raise InputError(
                f"{' '.join(line for backend in there for line in backend.problems)} "
                f"{', '.join(self.chooser.methods)} may put several adapters together, so they need that; "
                "--method selection does not."
            )

    async def close(self) -> None:
        """End all that it is made of; its server does that, where there is one."""
        await self.fleet.close()
        await asyncio.to_thread(self.watch.close)
        await asyncio.to_thread(self.chooser.close)


class Draining(Orderly):
    """A server that ends what it is still at when it is to end, in words.

    Args:
        config: of uvicorn.
        gateway: what is served.
    """

    def __init__(self, config: Any, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, and wait."""
        drain = self.gateway.settings.limits.drain
        timer = asyncio.get_running_loop().call_later(drain, self.gateway.fleet.give_up)
        await super().shutdown(sockets)
        timer.cancel()


def serve(view: PoolView, settings: Settings, say: Callable[[str], Any]) -> None:
    """Serve until SIGTERM or Ctrl-C; then what runs may end.

    Args:
        view: the pool.
        settings: the rest.
        say: tells where it listens, and what is wrong.

    Raises:
        InputError: as `Gateway`.
    """
    with leased(view.path), bound(settings.host, settings.port) as listening:
        connections = room(settings.limits.connections, listening.fileno())
        settings = replace(settings, limits=replace(settings.limits, connections=connections))
        asyncio.run(_serve(view, settings, listening, say))


async def _serve(view: PoolView, settings: Settings, listening: socket.socket, say: Callable[[str], Any]) -> None:
    gateway = Gateway(view, settings)
    try:
        await gateway.open(say)
    except BaseException:
        await gateway.close()
        raise
    write_down()
    host, port = listening.getsockname()[:2]
    say(f"http://{host}:{port}  (API at /v1, documentation at /docs)")
    await Draining(config_of(gateway.app, settings.limits), gateway).serve(sockets=[listening])


def watch(meters: Meters, fleet: Fleet, line: Line) -> None:
    """Have meters show what a fleet knows."""
    backends, folder = {str(each.place): each for each in fleet.backends}, fleet.folder
    meters.watch("waiting", "Requests in the line", lambda: len(line))
    meters.watch("folder_bytes", "Bytes of adapters in the folder", lambda: folder.size)
    meters.watch_counts("written", "Adapters written into the folder", "", lambda: {"": folder.written})
    meters.watch_counts("held", "Requests that waited as there were too many adapters", "", lambda: {"": line.held})
    shown: dict[str, tuple[str, Callable[[Backend], float]]] = {
        "up": ("Whether a backend answers", lambda each: each.is_there),
        "running": ("Requests at a backend, from here", lambda each: each.inside),
        "live_compositions": ("Adapters of the requests at a backend", lambda each: len(each.live)),
        "loaded": ("Adapters that a backend knows", lambda each: len(each.loaded)),
    }
    for name, (about, read) in shown.items():
        gauges = {place: partial(read, each) for place, each in backends.items()}
        meters.watch_gauges(name, about, "backend", gauges)
    for what in ("load", "load_failed", "unload", "unload_failed"):
        counts = partial(_counts, backends, what)
        meters.watch_counts(f"{what}s" if what in ("load", "unload") else what, f"{what} calls", "backend", counts)


def _counts(backends: dict[str, Backend], what: str) -> dict[str, int]:
    return {place: each.counts[what] for place, each in backends.items()}
