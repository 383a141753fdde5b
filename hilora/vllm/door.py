"""The API server's side: model "auto" is routed, "base" is the base alone, a pool's adapter is that adapter whole.

It stands inside vLLM's own authentication, in front of all its endpoints: whatever composition a client sends, by any
of them, is dropped. Load it with VLLM_PLUGINS=hilora.
"""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hilora.errors import HiloraError, InputError
from hilora.gateway.chooser import Chooser, Chosen
from hilora.gateway.parts import Room, check_method
from hilora.methods.method import Method
from hilora.pool.folder import PoolFolder
from hilora.serve.asked import AUTO, BASE, Ask, Caller
from hilora.serve.faults import MissingError
from hilora.serve.openai.answered import in_its_words
from hilora.serve.openai.asking import refused
from hilora.serve.openai.errors import error_of
from hilora.serve.openai.models import models_of
from hilora.serve.openai.reasons import headers_of, reasons_of
from hilora.serve.tenants import find
from hilora.serve.watch import Watch
from hilora.vllm.asks import ROUTED, ask_of
from hilora.vllm.composed import composition_of
from hilora.vllm.folders import Folders
from hilora.vllm.front import asking
from hilora.vllm.private.served import served_names
from hilora.vllm.replies import Added
from hilora.vllm.routes import routes

METHODS = "HILORA_METHODS"
DEFAULT_METHODS = ("hilora-plus", "hilora", "hilora-gs", "selection", "mixture")
MODELS = "/v1/models"
ANYBODY = Caller()


def check(method: Method) -> Method:
    """A method that can be served here; see `parts.check_method`."""
    if method.abstain:
        raise InputError(f"{method.name} may leave prompts unanswered, which vLLM cannot. Choose another fallback.")
    return check_method(method)


@dataclass
class Hall:
    """What the door leads to, once the engine is there; nothing before."""

    folders: Folders
    chooser: Chooser | None = None

    def knows(self, name: str) -> bool:
        """Whether a name is one of hilora's."""
        if name in (AUTO, BASE):
            return True
        try:
            return self.chooser is not None and find(self.chooser.view, ANYBODY, name) >= 0
        except MissingError:
            return False


class Door:
    """ASGI middleware.

    Args:
        app: vLLM's.
        hall: what it leads to.
    """

    def __init__(self, app: ASGIApp, hall: Hall) -> None:
        self.app, self.hall = app, hall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it in."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path, method = scope["path"].rstrip("/"), scope.get("method")
        if self.hall.chooser is not None and method == "POST" and path in ROUTED:
            body, receive = await _read(receive)
            await self._answer(self.hall.chooser, scope, body, receive, send)
            return
        if self.hall.chooser is not None and (method, path) == ("GET", MODELS):
            send = Added(send, {}, self._list)
        with asking(None):
            await self.app(scope, receive, send)

    def _list(self, page: dict[str, Any]) -> None:
        """Add what hilora serves to a list of models; what vLLM itself calls so stays."""
        assert self.hall.chooser is not None
        taken = {card["id"] for card in page["data"]}
        page["data"] += [card for card in models_of(self.hall.chooser, ANYBODY)["data"] if card["id"] not in taken]

    async def _answer(self, chooser: Chooser, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        path, given = scope["path"].rstrip("/"), _object(body)
        names = served_names(scope["app"])
        model = given.get("model")
        try:
            if model in names or not isinstance(model, str) or not self.hall.knows(model):
                if given.get("hilora") is not None:
                    raise refused(
                        "hilora", f"hilora is for model 'auto'; got model {model!r:.120}: nothing is routed."
                    )
                with asking(None):
                    await self.app(scope, receive, send)
                return
            ask = ask_of(given, path, chooser.methods)
            chosen = await self._choose(chooser, ask)
        except HiloraError as error:
            await error_of(error).response(scope, receive, send)
            return
        kept = {key: value for key, value in given.items() if key != "hilora"}
        told = json.dumps(kept | {"model": names[0], "seed": ask.seed}).encode()
        explain = bool((given.get("hilora") or {}).get("explain"))
        reasons = reasons_of(ask, chosen.why, explain)
        with asking(composition_of(chosen.parts, chosen.criterion)):
            await self.app(
                _sized(scope, len(told)),
                _replayed(told, receive),
                Added(send, headers_of(ask, chosen.why), lambda page: page.update(hilora=reasons)),
            )

    async def _choose(self, chooser: Chooser, ask: Ask) -> Chosen:
        """Choose, and have the adapters ready."""
        with in_its_words(ask):
            chosen = await chooser.choose(ask)
        await asyncio.to_thread(self.hall.folders.ensure, chosen.parts)
        return chosen


class Plugin:
    """vLLM's endpoint plugin (`vllm.plugins.endpoint_plugins`).

    Args:
        folders: of adapters.
        num_places: adapters of a composition, at most.
    """

    name, required_tasks = "hilora", ("generate",)

    def __init__(self, folders: Folders, num_places: int) -> None:
        self.hall, self.num_places = Hall(folders), num_places

    def attach_router(self, app: Any) -> None:
        """Put the door in front of all endpoints; middleware that vLLM adds later stands before it."""
        app.include_router(routes(lambda: self.hall.chooser))
        app.add_middleware(Door, hall=self.hall)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Open the pool, and have it watched.

        Raises:
            InputError: a method cannot be served.
            PoolError: the pool cannot be read.
        """
        if engine_client is None:
            return
        view = PoolFolder.open(self.hall.folders.pool)
        first, *others = methods()
        room = Room(adapters=min(self.num_places, engine_client.vllm_config.lora_config.max_loras))
        chooser = Chooser(view, first, None, others, check=check, room=room)
        watch = Watch(view.path, view.version, chooser.change)
        watch.asked = chooser.look_for_mended
        self.hall.chooser = chooser


def methods() -> list[str]:
    """HILORA_METHODS: those that requests may name, separated by commas, the default first."""
    given = [name.strip() for name in os.environ.get(METHODS, "").split(",")]
    return [name for name in given if name] or list(DEFAULT_METHODS)


def _object(body: bytes) -> dict[str, Any]:
    """The object that a body says; of what is none vLLM tells."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """A request's body, and what gives it again."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return body, _once(message, receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body, _replayed(body, receive)


def _replayed(body: bytes, receive: Receive) -> Receive:
    return _once({"type": "http.request", "body": body, "more_body": False}, receive)


def _once(message: Message, receive: Receive) -> Receive:
    left = [message]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _sized(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}
