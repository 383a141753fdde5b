"""One vLLM as the gateway knows it: whether it is up, what it has loaded, how much it has to do."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict
from functools import partial

from hilora.gateway.connections import Answer, Connections
from hilora.gateway.once import Once
from hilora.gateway.standing import Standing
from hilora.gateway.told import DownError, Models, Numbers, UnloadedError, error_of, models_of, numbers_of, refusal_of
from hilora.serve.journal import LOG

LOOK = 2.0
"""Seconds for an answer about itself."""
LOAD = 300.0
"""Seconds for loading an adapter: its files may be far away."""
NAMES = 512
"""Adapters that are loaded at once; of more, those used longest ago are unloaded."""


class Backend(Standing):
    """One server.

    Args:
        place: its number.
        url: where it is.
        key: that it wants; never the client's.
        running: requests that it is given at once, at most.
        resolves: it loads by itself what it is asked for, from the folder (vLLM's resolver of LoRAs).

    Raises:
        InputError: that is no such URL.

    Attributes:
        problems: lines, each of which names a setting to change.
        models, numbers: what it says of itself.
        loaded: adapters that it knows, as far as is known here; those used longest ago first.
        can_load: whether adapters can be loaded while it runs.
        max_rank: the largest rank that it takes; None while no other was refused.
        counts: loads, unloads and their failures.
    """

    def __init__(self, place: int, url: str, key: str | None, running: int, *, resolves: bool = False) -> None:
        super().__init__(place, running)
        self.resolves = resolves
        self.connections = Connections(url, {"Authorization": f"Bearer {key}"} if key else {})
        self.problems: list[str] = []
        self.models, self.numbers = Models(), Numbers()
        self.loaded: OrderedDict[str, None] = OrderedDict()
        self.can_load, self.counts = True, Counter[str]()
        self.max_rank: int | None = None
        self._loads: Once[None] = Once()
        self._turn = asyncio.Lock()

    def takes(self, name: str | None, rank: int) -> bool:
        """Whether it can use an adapter, as far as is known."""
        if name is None or name in self.loaded:
            return True
        return self.can_load and (self.max_rank is None or rank <= self.max_rank)

    async def look(self) -> None:
        """See how it is."""
        try:
            status, _ = await self.connections.ask("GET", "/health", LOOK)
            if status != 200:
                raise DownError(f"/health answered {status}")
            if not self.up:
                await self.list_models()
            status, page = await self.connections.ask("GET", "/metrics", LOOK)
            if status == 200:
                self.numbers = numbers_of(page.decode())
                self.others = max(0, self.numbers.requests - self.inside)
        except (DownError, ValueError) as error:
            self.fall(str(error) or type(error).__name__)
            return
        self.rise()

    async def list_models(self) -> None:
        """See what it has loaded.

        Raises:
            DownError: it does not say.
        """
        status, page = await self.connections.ask("GET", "/v1/models", LOOK)
        if status in (401, 403):
            self.up, self.problems = False, [f"Backend {self.place} wants a key: set HILORA_BACKEND_KEY."]
        if status != 200:
            raise DownError(f"/v1/models answered {status}")
        self.models = models_of(json.loads(page))
        self.loaded = OrderedDict.fromkeys(self.models.adapters)

    async def load(self, name: str, path: str) -> None:
        """Have it know an adapter.

        Args:
            name: of the adapter.
            path: of its folder, as the server sees it.

        Raises:
            UnloadedError: it refuses; says why.
            DownError: it did not answer.
        """
        if name in self.loaded:
            self.loaded.move_to_end(name)
            return
        if self.resolves:
            self.loaded[name] = None
            return
        await self._loads(name, partial(self._load, name, path))

    async def _load(self, name: str, path: str) -> None:
        async with self._turn:  # each stops the server's steps for a while
            self.counts["load"] += 1
            try:
                await self._command("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
            except (UnloadedError, DownError):
                self.counts["load_failed"] += 1
                raise
            self.loaded[name] = None

    async def unload(self, name: str) -> None:
        """Have it forget an adapter's name."""
        self.loaded.pop(name, None)
        if self.resolves:
            return
        self.counts["unload"] += 1
        try:
            await self._command("/v1/unload_lora_adapter", {"lora_name": name})
        except (UnloadedError, DownError) as error:
            self.counts["unload_failed"] += 1
            LOG.info("backend %d did not unload %s: %s", self.place, name, error)

    async def tidy(self) -> None:
        """Unload what has not been used for longest, if there is too much."""
        unused = [name for name in self.loaded if name not in self.live]
        for name in unused[: max(0, len(self.loaded) - NAMES)]:
            await self.unload(name)

    async def post(self, path: str, body: bytes, request: str) -> Answer:
        """Ask; the answer is to be closed.

        Args:
            path: of the API.
            body: JSON.
            request: its id.

        Raises:
            LostError: nothing came back.
        """
        return await self.connections.send("POST", path, body, Content_Type="application/json", X_Request_Id=request)

    async def close(self) -> None:
        """Ask no more."""
        await self._loads.close()
        self.connections.close()

    async def _command(self, path: str, words: dict[str, str]) -> None:
        status, content = await self.connections.ask("POST", path, LOAD, words)
        kind, message = error_of(content)
        if status == 200 or "already been loaded" in message:
            return
        raise self._refused(status, kind, message)

    def _refused(self, status: int, kind: str, message: str) -> UnloadedError:
        """A command was refused: what is known of the server from now on."""
        refusal = refusal_of(self.place, status, kind, message)
        self.can_load = self.can_load and not refusal.for_good
        self.max_rank = refusal.max_rank or self.max_rank
        return refusal
