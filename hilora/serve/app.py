"""The service, assembled: what comes in goes through bounds and doors to the desk or to the uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from hilora import __version__
from hilora.serve.access import need
from hilora.serve.api_about import about_routes
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.faults import ServiceError
from hilora.serve.gauges import state_of
from hilora.serve.journal import Journal
from hilora.serve.limits import Limits
from hilora.serve.openai.errors import install_errors
from hilora.serve.openai.guard import PAGES, Guard
from hilora.serve.openai.routes import routes
from hilora.serve.operation import operation
from hilora.serve.origin import SameOrigin
from hilora.serve.page import PLACE, POLICY, page_routes

ABOUT = """Prompts without labels in, answers with reasons out, by the adapters that fit them.

Any OpenAI client works: `model="auto"` routes. `/v1/adapters` takes new adapters while the server runs.
"""


def make_app(
    desk: PoolDesk,
    limits: Limits,
    who: Callable[[Request], Caller],
    *,
    others: Sequence[APIRouter] = (),
    closed: Sequence[Callable[[], Any]] = (),
    local: bool = True,
) -> FastAPI:
    """The service.

    Args:
        desk: answers prompts.
        limits: bounds on requests.
        who: says who asks, or raises `faults.UnauthorizedError`.
        others: routes beside OpenAI's, as those of uploads.
        closed: called when it has ended everything.
        local: it is for this machine alone (`origin.SameOrigin`).
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close, limits.drain)
        for call in closed:
            await asyncio.to_thread(call)

    app = FastAPI(title="hilora", version=__version__, description=ABOUT, lifespan=life)
    install_errors(app)
    app.add_middleware(Guard, limits=limits, pages=PAGES | {PLACE: POLICY})
    app.add_middleware(SameOrigin, local=local)
    app.add_middleware(Journal)  # the last one is the first to see a request
    app.include_router(routes(desk, limits, who))
    for each in others:
        app.include_router(each)
    app.include_router(about_routes(desk, who, uploads=bool(others)))
    app.include_router(page_routes())
    app.include_router(_seen_from_outside(desk, who))
    return app


def _seen_from_outside(desk: PoolDesk, who: Callable[[Request], Caller]) -> APIRouter:
    router = operation(desk.meters, who)

    @router.get("/readyz", summary="Whether it takes requests; to administrators, what it holds, too")
    def ready(request: Request) -> JSONResponse:
        state = state_of(desk)
        try:
            need(who(request), "admin")
        except ServiceError:  # others are not told of adapters that they may not see
            state = {name: state[name] for name in ("status", "base", "method", "lane", "epoch")}
        return JSONResponse(state, 200 if state["status"] == "ready" else 503)

    return router
