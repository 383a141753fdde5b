"""Pages of other sites reach no server through their reader's browser.

Without tokens, who listens on this machine alone trusts whoever is on it, and a browser is: a page that it shows may
post to any address, or have its own name point to 127.0.0.1. So requests of another origin than the server's are
refused, and, where no token is needed, those for any name but this machine's.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from hilora.serve.access import is_loopback
from hilora.serve.journal import Receive, Scope, Send


class SameOrigin:
    """Refuses requests from pages of other sites (ASGI).

    Args:
        app: answers the others.
        local: only names of this machine are served.
    """

    def __init__(self, app: Any, *, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "http" and (why := self._why_not(dict(scope["headers"]))):
            error = {"message": why, "type": "permission_error", "param": None, "code": "other_origin"}
            body = json.dumps({"error": error}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, send)

    def _why_not(self, headers: dict[bytes, bytes]) -> str:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.local and not is_loopback(_name(f"//{host}")):
            return "This server is for this machine alone; ask for it as 127.0.0.1 or localhost."
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc.lower() != host.lower():
            return "Requests from pages of other sites are refused."
        return ""


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
