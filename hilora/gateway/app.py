"""The gateway's paths, assembled: what comes in goes through bounds and doors to the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from hilora import __version__
from hilora.gateway.proxy import Forwarded, Proxy, headers
from hilora.gateway.reading import Read, read
from hilora.serve.access import Doorkeeper, need
from hilora.serve.asked import Caller
from hilora.serve.faults import MissingError, ServiceError
from hilora.serve.journal import Journal
from hilora.serve.openai.asking import route_ask
from hilora.serve.openai.described import ROUTE_BODY
from hilora.serve.openai.errors import Json, install_errors
from hilora.serve.openai.forms import CHAT, TEXT, Form
from hilora.serve.openai.guard import Guard
from hilora.serve.openai.models import model_of, models_of
from hilora.serve.openai.reasons import route_reply
from hilora.serve.openai.requests import RouteRequest
from hilora.serve.openai.routes import NOT_OFFERED, json_only, user_of, using
from hilora.serve.operation import operation
from hilora.serve.origin import SameOrigin

ABOUT = """Prompts without labels in, answers of vLLM out, by the adapters that fit them.

Any OpenAI client works: `model="auto"` routes. What is not `model` or `hilora` goes on to vLLM as it is.
"""
BODY: Any = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
    }
}


def make_app(proxy: Proxy, who: Doorkeeper, close: Callable[[], Awaitable[None]], *, local: bool = True) -> FastAPI:
    """The gateway.

    Args:
        proxy: what requests go through.
        who: says who asks.
        close: called in the end.
        local: it is for this machine alone (`origin.SameOrigin`).
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await close()

    app = FastAPI(title="hilora gateway", version=__version__, description=ABOUT, lifespan=life)
    install_errors(app)
    app.add_middleware(Guard, limits=proxy.limits)
    app.add_middleware(SameOrigin, local=local)
    app.add_middleware(Journal)  # the last one is the first to see a request
    app.include_router(_answers(proxy, who))
    app.include_router(_others(proxy, who))
    app.include_router(_seen_from_outside(proxy, who))
    return app


def _answers(proxy: Proxy, who: Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])

    async def forwarded(request: Request, form: Form) -> Response:
        caller = user_of(await who.at_once(request))  # here and not by FastAPI, which would take as long as all else
        await json_only(request)
        asked = read(await request.body(), form is TEXT, caller, proxy.limits, proxy.chooser.methods)
        return Forwarded(proxy, request.url.path, form, asked)

    @router.post("/chat/completions", summary="Answer a chat", response_model=None, openapi_extra=BODY)
    async def chat(request: Request) -> Response:
        """Answer a chat with the adapters that fit it; takes whatever vLLM takes."""
        return await forwarded(request, CHAT)

    @router.post("/completions", summary="Continue a text", response_model=None, openapi_extra=BODY)
    async def complete(request: Request) -> Response:
        """Continue a text; takes whatever vLLM takes."""
        return await forwarded(request, TEXT)

    return router


def _others(proxy: Proxy, who: Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/v1")
    known: Any = Depends(using(who))

    @router.post(
        "/route", summary="Route a prompt", tags=["routing"], dependencies=[Depends(json_only)], response_model=None
    )
    async def route(caller: Caller = known, body: RouteRequest = ROUTE_BODY) -> Response:
        """Say which adapters would answer a prompt, and why; no backend is asked."""
        ask = route_ask(body, caller, proxy.limits, proxy.chooser.methods)
        why = (await proxy.choose(ask)).why
        reply = route_reply(ask, why, not (body.hilora and body.hilora.explain is False))
        return Json(reply, headers=headers(Read(ask, {}, False, True), why))

    @router.get("/models", summary="List what can be named as model", tags=["models"], response_model=None)
    async def models(caller: Caller = known) -> Response:
        """Routing ("auto"), the base model alone ("base"), and every adapter that you see."""
        return Json(models_of(proxy.chooser, caller))

    @router.get("/models/{name:path}", summary="Look at one of them", tags=["models"], response_model=None)
    async def model(name: str, caller: Caller = known) -> Response:
        """An adapter, by its name or by the hash of its content."""
        return Json(model_of(proxy.chooser, caller, name))

    async def refuse_loading() -> Response:
        raise MissingError("The gateway loads adapters itself. Add one to its pool: hilora pool add.", "unknown_url")

    for path in NOT_OFFERED:
        router.post(path, include_in_schema=False)(refuse_loading)
    return router


def _seen_from_outside(proxy: Proxy, who: Doorkeeper) -> APIRouter:
    router = operation(proxy.meters, who)

    @router.get("/readyz", summary="Whether a backend answers; to administrators, what each lacks, too")
    def ready(request: Request) -> JSONResponse:
        backends = proxy.fleet.backends
        there = [backend for backend in backends if backend.is_there]
        status = "closing" if proxy.fleet.closing else "ready" if there else "no backend"
        state: dict[str, Any] = {"status": status, "backends": len(backends), "up": len(there)}
        try:
            need(who(request), "admin")
        except ServiceError:  # others are not told how it is run
            pass
        else:
            state["method"] = proxy.chooser.methods[0]
            state["adapters"] = len(proxy.chooser.view)
            state["pool_version"] = proxy.chooser.view.version
            state["problems"] = [line for backend in backends for line in backend.problems]
        return JSONResponse(state, 200 if status == "ready" else 503)

    return router
