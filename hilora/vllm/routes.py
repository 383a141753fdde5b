"""What hilora itself answers in vLLM's API server: how a prompt would be routed."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends
from starlette.responses import Response

from hilora.errors import HiloraError
from hilora.gateway.chooser import Chooser
from hilora.serve.asked import Caller
from hilora.serve.faults import ClosingError
from hilora.serve.limits import Limits
from hilora.serve.openai.asking import route_ask
from hilora.serve.openai.described import ROUTE_BODY
from hilora.serve.openai.errors import Json, error_of
from hilora.serve.openai.reasons import headers_of, route_reply
from hilora.serve.openai.requests import RouteRequest
from hilora.serve.openai.routes import json_only


def routes(chooser: Callable[[], Chooser | None]) -> APIRouter:
    """The paths, to be included in vLLM's application, whose own authentication stands before them.

    Args:
        chooser: what routes; None until the engine is there.
    """
    router = APIRouter(prefix="/v1", tags=["routing"])

    @router.post("/route", summary="Route a prompt", dependencies=[Depends(json_only)], response_model=None)
    async def route(body: RouteRequest = ROUTE_BODY) -> Response:
        """Say which adapters would answer a prompt, and why, without an answer."""
        found = chooser()
        try:
            if found is None:
                raise ClosingError("The engine is not there yet. Come again.", "starting")
            ask = route_ask(body, Caller(), Limits(), found.methods)
            why = (await found.choose(ask)).why
        except HiloraError as error:
            return error_of(error).response
        reply = route_reply(ask, why, not (body.hilora and body.hilora.explain is False))
        return Json(reply, headers=headers_of(ask, why))

    return router
