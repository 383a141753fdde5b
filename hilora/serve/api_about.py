"""What a caller may know of a server: its methods, who he is to it, and which adapters answer how much."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fastapi import APIRouter, Depends, Request

from hilora import __version__
from hilora.analyse.explain import score_kind
from hilora.base.embedded import shown_name
from hilora.methods.lookup import get_method
from hilora.methods.table import METHODS
from hilora.serve.access import need
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk


def about_routes(desk: PoolDesk, who: Callable[[Request], Caller], *, uploads: bool) -> APIRouter:
    """The paths, to be included in an application.

    Args:
        desk: answers prompts.
        who: says who asks, or raises a `faults.UnauthorizedError`.
        uploads: whether adapters can be uploaded.
    """
    router = APIRouter(prefix="/v1", tags=["operation"])
    known: Any = Depends(who)

    @router.get("/about", summary="What is served, and what you may do")
    def about(caller: Caller = known) -> dict[str, Any]:
        """The base model, the methods that may be named with what their scores mean, and your own rights."""
        return {
            "object": "hilora.about",
            "version": __version__,
            "base": shown_name(desk.edition.view.base.name),
            "methods": [method_part(name) for name in desk.methods],
            "uploads": uploads,
            "tenant": caller.tenant,
            "scopes": sorted(caller.scopes),
        }

    @router.get("/traffic", summary="Which adapters answer how many prompts")
    def traffic(caller: Caller = known) -> dict[str, Any]:
        """Prompts since the server started, by adapter; your tenant's, and to administrators everybody's."""
        need(caller, "use")
        found = desk.traffic.of(caller, desk.visible(caller))
        return {
            "object": "hilora.traffic",
            "since": int(desk.traffic.since),
            "base": found.pop("", 0),
            "data": [{"name": name, "prompts": count} for name, count in found.items()],
        }

    return router


@cache
def method_part(name: str) -> dict[str, Any]:
    """What is told of a method."""
    kind = score_kind(get_method(name))
    return {
        "id": name,
        "summary": (METHODS[name].__doc__ or "").strip().partition("\n")[0],
        "score": None if kind is None else {"name": kind.name, "meaning": kind.meaning},
    }
