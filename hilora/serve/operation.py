"""What whoever runs a service asks of it: whether its process lives, and what it counts."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request, Response

from hilora.serve.access import need
from hilora.serve.asked import Caller
from hilora.serve.meters import Shown


def operation(meters: Shown, who: Callable[[Request], Caller]) -> APIRouter:
    """The paths that are the same for all; each service adds its own word on whether it is ready.

    Args:
        meters: what is counted.
        who: says who asks.
    """
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Whether the process lives")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/metrics", summary="For Prometheus; for administrators", response_class=Response)
    def metrics(caller: Caller = Depends(who)) -> Response:  # noqa: B008
        need(caller, "admin")
        page, kind = meters.page()
        return Response(page, media_type=kind)

    return router
