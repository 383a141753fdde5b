"""The page at /ui: files that a browser gets as they are; all else it asks of the API, with its reader's token."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

PLACE = "/ui"
FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "main.js": "text/javascript",
    "api.js": "text/javascript",
    "dom.js": "text/javascript",
    "ask.js": "text/javascript",
    "answer.js": "text/javascript",
    "map.js": "text/javascript",
    "pool.js": "text/javascript",
    "upload.js": "text/javascript",
}
"""All that there is, and its type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What the page may load: its own files; and no text may become markup or code, whoever wrote it."""


def page_routes() -> APIRouter:
    """The paths, to be included in an application. Nobody needs a token for them: they say nothing."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def root() -> RedirectResponse:
        return RedirectResponse(PLACE.lstrip("/"))

    @router.get(PLACE)
    def page() -> Response:
        return _file("index.html")

    for name in FILES:
        router.get(f"{PLACE}/{name}")(lambda name=name: _file(name))
    return router


def _file(name: str) -> Response:
    return Response(_content(name), media_type=f"{FILES[name]}; charset=utf-8")


@cache
def _content(name: str) -> bytes:
    return files(__name__).joinpath(name).read_bytes()
