"""Errors in OpenAI's form, whatever goes wrong; of what failed inside, the log alone tells more."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from hilora.errors import HiloraError, InputError
from hilora.pool.reading import DamagedError
from hilora.serve import faults
from hilora.serve.faults import (
    AwayError,
    BusyError,
    FullError,
    LateError,
    ServiceError,
    UnauthorizedError,
    UnusableError,
    is_full,
)
from hilora.serve.openai.replies import ErrorReply

log = logging.getLogger(__name__)
CODES: Mapping[type[HiloraError], str] = {
    faults.UnauthorizedError: "invalid_api_key",
    faults.ForbiddenError: "insufficient_permissions",
    faults.MissingError: "not_found",
    faults.ConflictError: "conflict",
    faults.TooLargeError: "request_too_large",
    faults.BusyError: "rate_limit_exceeded",
    faults.LateError: "timeout",
    faults.ClosingError: "shutting_down",
    faults.AwayError: "unavailable",
}
"""Codes of errors that bring none."""
HTTP_CODES: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_json",
    HTTPStatus.NOT_FOUND: "unknown_url",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    413: "request_too_large",
}
"""Of what is refused before anybody has looked at the request."""
FAILED = "The server failed; its log says why, under the X-Request-Id of this response."
"""What is told of an error that nobody thought of."""


class Json(JSONResponse):
    """JSON in ASCII: half characters that a client sent are sent back, too."""

    def render(self, content: Any) -> bytes:
        """Bytes."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class Told:
    """An error as a client is told of it."""

    status: int
    body: ErrorReply
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def response(self) -> Response:
        """The same, to be sent."""
        return Json(self.body, self.status, self.headers)


def told(
    status: int, message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> Told:
    """An error of that status."""
    return Told(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_of(error: Exception, request: str = "") -> Told:
    """What a client is told of an error; one that is the server's own is logged, and its text is kept back.

    Args:
        error: any.
        request: its id, for the log.
    """
    if isinstance(error, ServiceError):
        code = error.code or CODES.get(type(error))
        found = told(error.status, str(error), error.type, code, error.param)
        found.headers.update(_headers_of(error))
        return found
    if isinstance(error, DamagedError):
        return error_of(UnusableError(), request)
    if is_full(error):
        log.error("Request %s failed: %s", request, error)
        return error_of(FullError(), request)
    if isinstance(error, InputError):
        return told(HTTPStatus.BAD_REQUEST, str(error), code="invalid_value")
    log.error("Request %s failed.", request, exc_info=error)
    return told(HTTPStatus.INTERNAL_SERVER_ERROR, FAILED, "server_error", "internal_error")


def id_of(scope: Scope) -> str:
    """The id of a request that came by the guard (`guard.Guard`); "" of one that did not."""
    return str(scope.get("state", {}).get("request_id", ""))


def _headers_of(error: ServiceError) -> dict[str, str]:
    if isinstance(error, BusyError | AwayError):
        return {"Retry-After": str(max(1, math.ceil(error.after)))}
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, LateError):
        return {"X-Should-Retry": "false"}  # OpenAI's clients would send it twice more
    return {}


def install_errors(app: FastAPI) -> None:
    """Have an application tell all its errors in OpenAI's form."""
    app.add_exception_handler(HiloraError, _refuse)
    app.add_exception_handler(OSError, _refuse)  # a full disk
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse_http)
    documented = app.openapi

    def openapi() -> dict[str, Any]:
        """The document without FastAPI's own form of errors, which is not used."""
        document = documented()
        for path in document.get("paths", {}).values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI has it done


async def _refuse(request: Request, error: Exception) -> Response:
    return error_of(error, id_of(request.scope)).response


async def _refuse_http(request: Request, error: Exception) -> Response:
    """No such path, or no such method of it, or no JSON."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    messages: dict[int, str] = {
        HTTPStatus.NOT_FOUND: f"Nothing answers {asked}. See /docs for what does.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{asked} is not answered; other methods of it are.",
    }
    message = messages.get(error.status_code, str(error.detail))
    found = told(error.status_code, message, code=HTTP_CODES.get(error.status_code))
    found.headers.update(error.headers or {})
    return found.response


async def _refuse_fields(request: Request, error: Exception) -> Response:
    """Fields that are not what they should be: the one that lies deepest is told, others are counted."""
    assert isinstance(error, RequestValidationError)
    found = [(path_of(each["loc"], error.body, each["type"] == "missing"), each) for each in error.errors()]
    path, first = max(found, key=lambda each: len(each[0]))
    if first["type"] == "json_invalid":
        message = f"The body is no JSON: {first['ctx']['error']} at {first['loc'][-1]}."
        return told(HTTPStatus.BAD_REQUEST, message, code="invalid_json").response
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    what = f"{param!r:.120}" if param else "The body"
    said = dict.fromkeys(
        each["msg"] for other, each in found if other == path
    )  # several for a value of several types
    others = len({tuple(other) for other, _ in found}) - 1
    more = f" Other fields that are wrong: {others}." if others else ""
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    message = f"{what}: {', or: '.join(said)}.{more}"
    return told(HTTPStatus.BAD_REQUEST, message, code=code, param=param or None).response


def path_of(loc: Sequence[Any], body: Any, missing: bool) -> list[str | int]:
    """Where in a request an error lies: without the steps that name the type that a value was compared with.

    Args:
        loc: pydantic's steps, the first of which says whether the body is meant.
        body: of the request.
        missing: whether the last step names what is not there.
    """
    steps = list(loc[1:])
    if loc[0] != "body":
        return steps
    path, here = list[str | int](), body
    for place, step in enumerate(steps, start=1):
        if (isinstance(here, dict) and step in here) or (isinstance(here, list) and step in range(len(here))):
            path.append(step)
            here = here[step]
        elif missing and place == len(steps):
            path.append(step)
    return path
