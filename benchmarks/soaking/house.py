"""A whole service on a port of its own, in this process, with every version of the pool that it has served."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import httpx2
import uvicorn

from hilora import HiLoRA
from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.pool.view import Entry, PoolView
from hilora.serve.access import Doorkeeper
from hilora.serve.api_adapters import adapter_routes
from hilora.serve.app import make_app
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.limits import Limits
from hilora.serve.publish import Publisher
from hilora.serve.state import State
from hilora.serve.tenants import fingerprint
from hilora.serve.uploads import Uploads
from hilora.serve.watch import Watch
from soaking.made import until
from soaking.things import Things

LIMITS = Limits(capture=1.0, running=12)
"""Fewer rows at a time than clients, so that some wait; newcomers may be like others."""


class House:
    """Parts put together as `hilora.serve.run.serve` does.

    Args:
        things: a pool, and whatever else is needed.
        router: over the pool, with a model of its own.

    Attributes:
        views: of the pool, by the hashes that an answer tells, of adapters and of epoch.
    """

    def __init__(self, things: Things, router: HiLoRA, limits: Limits = LIMITS) -> None:
        self.things, self.views = things, dict[tuple[str, str], PoolView]()
        folder, state = things.folder, State(things.folder)
        self.desk = PoolDesk(router, limits, things.methods)
        self._keep(router.planner.pool)
        self.watch = Watch(folder, router.planner.pool.version, self.change)
        publisher = Publisher(folder, limits, self.watch.look, lambda: self.desk.edition.view)
        self.uploads = Uploads(publisher, state, limits, things.checker())
        self.uploads.open()
        keeper = Doorkeeper(state, is_open=True)
        others, closed = [adapter_routes(self.uploads, keeper)], [self.uploads.close, self.watch.close]
        app = make_app(self.desk, limits, keeper, others=others, closed=closed)
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    @property
    def entries(self) -> Sequence[Entry]:
        """Adapters that are served now."""
        return self.desk.edition.view.entries

    def change(self, view: PoolView) -> None:
        """The pool has changed."""
        self._keep(view)
        self.desk.change(view)

    def _keep(self, view: PoolView) -> None:
        self.views[fingerprint(view, Caller()), view.epoch_key] = view

    def end(self) -> None:
        """As a signal ends a server."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def left(self) -> list[str]:
        """What waits, runs or is kept once nobody asks any more, and what is wrong with the pool."""
        desk, wrong = self.desk, list[str]()
        until(lambda: desk.waiting == desk.running == 0 and not desk._tickets)
        pool = Pool.open(self.things.folder)
        until(lambda: desk.edition.view.version == pool.version)
        with desk.engine.alone():
            if desk.engine.loop.num_bytes:
                wrong.append(f"{desk.engine.loop.num_bytes} bytes of keys and values are kept")
        for bank in desk.edition.banks:
            if bank.pins:
                wrong.append(f"adapters are pinned: {bank.pins}")
        ready = httpx2.get(f"{self.url}/readyz")
        told = ready.json()
        if (ready.status_code, told["status"], told["waiting"], told["running"]) != (200, "ready", 0, 0):
            wrong.append(f"it is not ready: {told}")
        if told["pool_version"] != pool.version:
            wrong.append(f"version {told['pool_version']} is served, not {pool.version}")
        wrong += damaged(pool)
        if self.uploads._waiting:
            wrong.append(f"uploads wait: {self.uploads._waiting}")
        incoming = self.things.folder / "serve" / "incoming"
        wrong += [f"{path} is left of an upload" for path in incoming.rglob("*") if path.is_file()]
        if len(held := holders(self.things.folder)) != 1:
            wrong.append(f"leases are held: {held}")
        return wrong

    def counted(self, kind: str) -> float:
        """What its meters say."""
        (found,) = [each for each in self.desk.meters.registry.collect() if each.name == f"hilora_{kind}"]
        return sum(sample.value for sample in found.samples if sample.name.endswith("_total"))


def damaged(pool: Any) -> list[str]:
    """Adapters that a pool names and cannot read."""
    return [f"{entry.name}: {wrong}" for entry, wrong in pool.check() if wrong]
