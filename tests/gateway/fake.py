"""A stand-in of vLLM 0.32: its paths, answers, streams and errors, with knobs for what can go wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from safetensors import safe_open
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "tiny"
WORDS = ("one ", "two ", "three")


def error(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


@dataclass
class Knobs:
    """What goes wrong.

    Attributes:
        status: of answers, where it is not 200.
        dies: "before" headers, "headers" alone, "middle" of the stream; it closes the connection then.
        failures: so many requests go wrong as above, then none.
        engine: streams begin with the error that a dead engine gives.
        pause: seconds between words; `hold`: what answers wait for.
        loads: whether adapters can be loaded; `lora`: whether there can be any.
        max_rank: the largest that it takes.
        key: that it wants.
        checks_names: whether unknown models are refused.
        max_lora: that its metrics tell; 0 for no such line.
        listed: adapters that it was started with.
        resolves: folder in which it looks for models that it does not know.
    """

    status: int = 200
    dies: str = ""
    failures: int = 10**9
    engine: bool = False
    pause: float = 0.0
    hold: threading.Event | None = None
    loads: bool = True
    lora: bool = True
    max_rank: int = 64
    key: str = ""
    checks_names: bool = True
    max_lora: int = 8
    healthy: bool = True
    listed: tuple[str, ...] = ()
    resolves: Path | None = None
    base: str = BASE
    root: str = f"models/{BASE}"


@dataclass
class Seen:
    """What it was asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    loads: Counter[str] = field(default_factory=Counter)
    unloads: Counter[str] = field(default_factory=Counter)
    left: int = 0  # clients that were gone before the end
    together: int = 0  # most requests at once
    adapters: int = 0  # most different adapters at once


class FakeVllm:
    """A server in a thread.

    Args:
        knobs: what goes wrong.
        port: 0 takes a free one.
    """

    def __init__(self, knobs: Knobs | None = None, port: int = 0) -> None:
        self.knobs, self.seen = knobs or Knobs(), Seen()
        self.adapters: dict[str, str] = {}
        self.at_work: Counter[str] = Counter()
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, also again, at the same port: what was loaded is forgotten."""
        self.adapters = {name: f"/listed/{name}" for name in self.knobs.listed}
        self.at_work.clear()
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._text, methods=["POST"]),
        ]
        if self.knobs.loads:
            routes += [
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        config = uvicorn.Config(
            Starlette(routes=routes, exception_handlers={404: lambda *_: error(404, "Not Found", "Not Found")}),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def _run(self, listening: socket.socket) -> None:
        asyncio.run(self._serve(listening))

    async def _serve(self, listening: socket.socket) -> None:
        await self.server.serve(sockets=[listening])
        for _ in range(3):  # one that came while it ended is broken, too, and told so, before the loop closes
            for connection in list(self.server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await asyncio.sleep(0)

    def kill(self) -> None:
        """End as a process does that is killed: all connections break, the port is free."""
        loop = self.server.servers[0].get_loop()
        for each in self.server.servers:  # else what breaks now may come again, and be answered by one that is ending
            loop.call_soon_threadsafe(each.close)
        for connection in list(self.server.server_state.connections):
            loop.call_soon_threadsafe(connection.transport.abort)  # type: ignore[union-attr]
        self.server.force_exit = self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.knobs.healthy else 503)

    async def _metrics(self, request: Request) -> Response:
        running = sum(self.at_work.values())
        names = ",".join(name for name in self.at_work if name != self.knobs.base)
        labels = f'max_lora="{self.knobs.max_lora}",running_lora_adapters="{names}",waiting_lora_adapters="{names}"'
        old = f'max_lora="{self.knobs.max_lora}",running_lora_adapters="",waiting_lora_adapters=""'
        lines = [
            f'vllm:num_requests_running{{engine="0",model_name="{BASE}"}} {running}.0',
            f'vllm:num_requests_waiting{{engine="0",model_name="{BASE}"}} 0.0',
            f'vllm:num_requests_waiting_by_reason{{engine="0",model_name="{BASE}",reason="capacity"}} 7.0',
        ]
        if self.knobs.max_lora:
            lines += [f"vllm:lora_requests_info{{{old}}} 1.0", f"vllm:lora_requests_info{{{labels}}} {time.time()}"]
        return PlainTextResponse("# HELP x y\n" + "\n".join(lines) + "\n")

    def _refused(self, request: Request) -> Response | None:
        if self.knobs.key and request.headers.get("authorization") != f"Bearer {self.knobs.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return None

    async def _models(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        card = {"object": "model", "created": 1, "owned_by": "vllm", "permission": []}
        base = {"id": self.knobs.base, "root": self.knobs.root, "parent": None, "max_model_len": 256}
        adapters = [
            {"id": name, "root": path, "parent": self.knobs.base, "max_model_len": None}
            for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": [card | each for each in (base, *adapters)]})

    async def _load(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        asked = await request.json()
        name, path = asked["lora_name"], Path(asked["lora_path"])
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            return error(400, message + "set 'load_inplace' to True.", "InvalidUserInput")
        if not self.knobs.lora:
            message = "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA."
            return error(500, message, "InternalServerError")
        try:
            rank = json.loads((path / "adapter_config.json").read_text())["r"]
            with safe_open(path / "adapter_model.safetensors", "pt") as file:
                assert list(file.keys())
        except FileNotFoundError:
            return error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        if rank > self.knobs.max_rank:
            why = f"LoRA rank {rank} is greater than max_lora_rank {self.knobs.max_rank}."
            return error(500, f"Call to add_lora method failed: {why}", "InternalServerError")
        self.adapters[name] = str(path)
        self.seen.loads[name] += 1
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.seen.unloads[name] += 1
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _answer(self, request: Request, chat: bool) -> Response:
        if refused := self._refused(request):
            return refused
        body, knobs = await request.json(), self.knobs
        name = body["model"]
        if knobs.resolves is not None and (knobs.resolves / name / "adapter_config.json").exists():
            self.adapters[name] = str(knobs.resolves / name)
        if name not in (knobs.base, *self.adapters) and knobs.checks_names:
            message = f"The model `{name}` does not exist. Valid aliases: {knobs.base}."
            return error(404, message, "NotFoundError", "model")
        if body.get("max_tokens", 1) == 0:
            return error(400, "max_tokens must be at least 1, got 0.", "BadRequestError", "max_tokens")
        self.seen.bodies.append(body)
        self.seen.headers.append(dict(request.headers))
        if path := self.adapters.get(name):
            assert path.startswith("/listed/") or Path(path, "adapter_config.json").exists(), path
        is_wrong = knobs.failures > 0 and (knobs.status != 200 or bool(knobs.dies) or knobs.engine)
        if is_wrong:
            knobs.failures -= 1
        if is_wrong and knobs.status != 200:
            return error(knobs.status, "It does not work.", "InternalServerError")
        if is_wrong and knobs.dies == "before":
            await self._break(request)
        self._come(name)
        if body.get("stream"):
            pieces = self._pieces(request, body, chat, is_wrong)
            return StreamingResponse(pieces, media_type="text/event-stream")
        try:
            await self._wait(request)
            for _ in WORDS:
                await asyncio.sleep(knobs.pause)
        finally:
            self._go(name)
        if is_wrong and knobs.dies == "middle":
            return StreamingResponse(self._half(request), media_type="application/json")
        return JSONResponse(self._whole(body, chat))

    def _come(self, name: str) -> None:
        self.at_work[name] += 1
        self.seen.together = max(self.seen.together, sum(self.at_work.values()))
        distinct = sum(1 for each, count in self.at_work.items() if count and each != self.knobs.base)
        self.seen.adapters = max(self.seen.adapters, distinct)

    def _go(self, name: str) -> None:
        self.at_work[name] -= 1
        if self.at_work[name] <= 0:
            del self.at_work[name]

    async def _wait(self, request: Request) -> None:
        while self.knobs.hold is not None and not self.knobs.hold.is_set():
            if await request.is_disconnected():
                self.seen.left += 1
                return
            await asyncio.sleep(0.01)

    async def _break(self, request: Request) -> None:
        """The connection breaks."""
        here = request.scope["client"]
        for connection in list(self.server.server_state.connections):
            if connection.client == here:  # type: ignore[union-attr]
                connection.transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(30)

    async def _half(self, request: Request) -> Any:
        yield b'{"id": "half'
        await asyncio.sleep(0.05)
        await self._break(request)

    def _whole(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        said = f"{body['model']}: {''.join(WORDS)}"
        choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        return {
            "id": "x-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, **choice, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        }

    async def _pieces(self, request: Request, body: dict[str, Any], chat: bool, is_wrong: bool) -> Any:
        knobs, name = self.knobs, body["model"]
        head = {"id": "x-1", "object": "chat.completion.chunk", "created": 1, "model": name}
        try:
            if is_wrong and knobs.dies == "headers":
                yield b""
                await asyncio.sleep(0.05)
                await self._break(request)
            if is_wrong and knobs.engine:
                told = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
                yield f"data: {json.dumps({'error': told})}\n\n".encode()
                yield b"data: [DONE]\n\n"
                return
            await self._wait(request)
            for place, word in enumerate((f"{name}: ", *WORDS)):
                said = {"delta": {"content": word}} if chat else {"text": word}
                choice = {"index": 0, **said, "finish_reason": None}
                yield f"data: {json.dumps(head | {'choices': [choice]})}\n\n".encode()
                await asyncio.sleep(knobs.pause)
                if is_wrong and knobs.dies == "middle" and place == 1:
                    await asyncio.sleep(0.05)
                    yield b'data: {"id": "cut'
                    await asyncio.sleep(0.05)
                    await self._break(request)
            end = {"delta": {}} if chat else {"text": ""}
            choice = {"index": 0, **end, "finish_reason": "stop"}
            yield f"data: {json.dumps(head | {'choices': [choice]})}\n\n".encode()
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.seen.left += 1
            raise
        finally:
            self._go(name)
