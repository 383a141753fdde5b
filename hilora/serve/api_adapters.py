"""The paths by which adapters come and go: /v1/adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from hilora.base.embedded import shown_name
from hilora.errors import HiloraError
from hilora.pool.view import Entry
from hilora.serve.access import need
from hilora.serve.asked import Caller
from hilora.serve.faults import DISK_FULL, ConflictError, ForbiddenError, FullError, MissingError, ServiceError
from hilora.serve.meters import reason_of
from hilora.serve.parts import FILES, WORDS, Form, receive
from hilora.serve.publish import TAKEN
from hilora.serve.state import OPEN
from hilora.serve.state_tables import Upload
from hilora.serve.tenants import called, find, tenant_of, visible
from hilora.serve.uploads import Uploads

UPLOAD, ADMIN = "upload", "admin"
WAIT: Any = Query(0.0, ge=0, le=600, description="Seconds to wait until it is checked; 0 answers at once, with 202")
TENANT: Any = Query(None, description="Another tenant's; for administrators", max_length=128)
LIMIT: Any = Query(100, ge=1, le=1000)
AFTER: Any = Query("", description="The last name of the page before", max_length=256)
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["config", "weights"],
                    "properties": {name: {"type": "string", "format": "binary"} for name in FILES}
                    | {name: {"type": "string"} for name in WORDS},
                }
            }
        },
    }
}
"""The form, for the OpenAPI document: the server reads it piece by piece."""


def adapter_routes(uploads: Uploads, who: Callable[[Request], Caller]) -> APIRouter:
    """The paths, to be included in an application.

    Args:
        uploads: takes them.
        who: says who asks, or raises a `faults.UnauthorizedError`.
    """
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
    served = uploads.publisher.served

    def asking(request: Request, tenant: str | None = TENANT) -> Caller:
        caller = who(request)
        if tenant is None or tenant == caller.tenant:
            return caller
        need(caller, ADMIN)
        return changed(caller, tenant=tenant)

    known: Any = Depends(asking)

    @router.post("", summary="Add an adapter", status_code=202, openapi_extra=FORM)
    async def add(request: Request, wait: float = WAIT, caller: Caller = known) -> JSONResponse:
        """Send an adapter to be checked, and then routed to.

        202 with its state, which GET tells from then on; with `wait`, 201 once it is live, or why it was refused.
        The same name and content again gives the same result; another content under a taken name is refused (409).
        """
        return await _take(uploads, request, caller, None, wait)

    @router.put("/{name}", summary="Put an adapter in its place", status_code=202, openapi_extra=FORM)
    async def put(request: Request, name: str, wait: float = WAIT, caller: Caller = known) -> JSONResponse:
        """As POST, and takes the place of an adapter of that name; what is being answered keeps the old one."""
        return await _take(uploads, request, caller, name, wait)

    @router.get("", summary="List the adapters that you see")
    def listing(limit: int = LIMIT, after: str = AFTER, caller: Caller = known) -> JSONResponse:
        """By name, page by page."""
        view = served()
        entries = sorted((e for e in visible(view, caller) if e.name > after), key=lambda entry: entry.name)
        page = entries[:limit]
        return JSONResponse(
            {
                "object": "list",
                "data": [adapter_reply(entry) for entry in page],
                "has_more": len(entries) > len(page),
                "last": page[-1].name if page else None,
                "base": shown_name(view.base.name),
                "embedder": {
                    "name": shown_name(view.embedder.name),
                    "dim": view.embedder.dim,
                    "instruction": view.embedder.instruction,
                    "fingerprint": view.embedder.fingerprint,
                },
            }
        )

    @router.get("/{name}", summary="Look at one, or at what became of an upload")
    def look(name: str, caller: Caller = known) -> JSONResponse:
        """An adapter by name or content hash; the state of its newest upload for those who may change it."""
        return JSONResponse(_looked(uploads, caller, name))

    @router.delete("/{name}", summary="Take an adapter out")
    def remove(name: str, caller: Caller = known) -> JSONResponse:
        """Nothing routes to it from now on; what is being answered goes on."""
        if ADMIN not in caller.scopes:
            need(caller, UPLOAD)
        view = served()
        entry = view.entries[find(view, caller, name)]
        if not may_change(caller, tenant_of(entry)):
            raise ForbiddenError(
                "This adapter is everybody's; taking it out is for administrators.", "insufficient_scope"
            )
        uploads.remove(caller, entry)
        return JSONResponse({"object": "adapter.deleted", "name": called(entry), "deleted": True})

    return router


async def _take(uploads: Uploads, request: Request, caller: Caller, name: str | None, wait: float) -> JSONResponse:
    """Receive a form, and have it checked."""
    if ADMIN not in caller.scopes:
        need(caller, UPLOAD)
    try:
        folder = await asyncio.to_thread(uploads.reserve, caller)
    except ServiceError as error:
        _count(uploads, error)
        raise
    try:
        given = request.headers.get("content-type", "")
        form = await receive(request.stream(), given, folder, uploads.limits)
        called_so = _name_of(form, name)
        tenant = _tenant_of(form, caller)
        upload = await asyncio.to_thread(
            lambda: uploads.submit(caller, tenant, called_so, form, replace=name is not None)
        )
    except BaseException as error:
        _count(uploads, error)
        await asyncio.shield(asyncio.to_thread(uploads.release, caller, folder))
        raise
    found = await uploads.wait(upload.id, wait) if wait else upload
    if found.reason == DISK_FULL:
        raise FullError
    if found.state == "refused":
        kind = ConflictError if found.reason == TAKEN else ServiceError
        raise kind(found.reason, "already_exists" if found.reason == TAKEN else "adapter_refused")
    place = f"/v1/adapters/{called_so}"
    return JSONResponse(upload_reply(found), 202 if found.state in OPEN else 201, {"Location": place})


def _count(uploads: Uploads, error: BaseException) -> None:
    """An upload ends before it is one: it is refused, its sender has left, or it cannot be written."""
    if isinstance(error, HiloraError):
        uploads.meters.uploaded("refused", reason_of(error))
    elif isinstance(error, Exception):  # else the server ends, and it may have been received
        uploads.meters.uploaded("failed", "not_received")


def _looked(uploads: Uploads, caller: Caller, name: str) -> dict[str, Any]:
    """What a caller is told of a name."""
    state, view = uploads.state, uploads.publisher.served()
    mine = [tenant for tenant in dict.fromkeys((caller.tenant, "")) if may_change(caller, tenant)]
    last = {tenant: found for tenant in mine if (found := state.last(tenant, name)) is not None}
    under_way = next((each for each in last.values() if each.state not in ("live", "removed")), None)
    try:
        entry = view.entries[find(view, caller, name)]
    except MissingError:
        if under_way is None:
            raise
        return upload_reply(under_way) | {"upload": upload_reply(under_way)}
    tenant = tenant_of(entry)
    if under_way is not None and under_way.tenant != tenant:  # what has that name by now is another's
        return upload_reply(under_way) | {"upload": upload_reply(under_way)}
    upload = last.get(tenant)
    shown = entry if entry.name == name else changed(entry, name=called(entry))
    return adapter_reply(shown) | {"upload": None if upload is None else upload_reply(upload)}


def may_change(caller: Caller, tenant: str) -> bool:
    """Whether a caller may change what is a tenant's own; what is everybody's ("") is for administrators."""
    return ADMIN in caller.scopes or (UPLOAD in caller.scopes and caller.tenant == tenant != "")


def adapter_reply(entry: Entry) -> dict[str, Any]:
    """An adapter that is served, as callers are told of it."""
    return {
        "object": "adapter",
        "name": entry.name,
        "state": "live",
        "hash": entry.hash,
        "private": bool(tenant_of(entry)),
        "enabled": entry.enabled,
        "rank": entry.rank,
        "sites": entry.num_sites,
        "parameters": entry.num_parameters,
        "samples": entry.num_samples,
        "origin": entry.origin,
        "added": entry.added,
    }


def upload_reply(upload: Upload) -> dict[str, Any]:
    """What became of an upload so far."""
    return {
        "object": "upload",
        "id": upload.id,
        "name": upload.name,
        "private": bool(upload.tenant),
        "state": upload.state,
        "reason": upload.reason or None,
        "hash": upload.hash or None,
        "bytes": upload.bytes,
        "created": upload.created,
        "changed": upload.changed,
    }


def _name_of(form: Form, path: str | None) -> str:
    given = form.words.get("name", "")
    if path is not None and given not in ("", path):
        raise ServiceError(f"The path names {path!r:.140}, and the form {given!r}.", "invalid_value", "name")
    name = path or given
    if not name:
        raise ServiceError("The form has no field 'name'.", "missing_required_parameter", "name")
    return name


def _tenant_of(form: Form, caller: Caller) -> str:
    """Whose own an upload is to be; "" for everybody's."""
    private = form.flag("private", bool(caller.tenant))
    if private and not caller.tenant:
        raise ServiceError("This token has no tenant, whose own the adapter could be.", "invalid_value", "private")
    tenant = caller.tenant if private else ""
    if not may_change(caller, tenant):
        remedy = "Leave `private` away, or set it to true." if caller.tenant else "Take a token of a tenant."
        raise ForbiddenError(f"What is everybody's is for administrators. {remedy}", "insufficient_scope")
    return tenant
