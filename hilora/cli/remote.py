"""A server instead of a folder: adapters are sent, listed and taken out by HTTP, with the standard library alone."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any

import typer

from hilora.base.models import first_line
from hilora.errors import HiloraError, InputError, PoolError
from hilora.pool.view import Entry

TOKEN = "HILORA_TOKEN"
CHUNK = 1 << 20
PATIENCE = 60.0
"""Seconds for an answer, beyond what the server was asked to wait."""
TokenFile = Annotated[
    Path | None, typer.Option(help=f"File with the token of a server; default: the variable {TOKEN}.")
]


def is_url(pool: str | None) -> bool:
    """Whether a pool is a server's."""
    return pool is not None and pool.lower().startswith(("http://", "https://"))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token goes to nobody but the server that was named."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Follow nothing."""


class Remote:
    """The adapters of a server.

    Args:
        url: of the server, with or without /v1.
        token_file: holds its token; None for what the environment has, if anything.

    Raises:
        InputError: no such file, or no URL.
    """

    def __init__(self, url: str, token_file: Path | None) -> None:
        parts = urllib.parse.urlsplit(url)
        if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise InputError(f"{url!r} is no server's address: expected http://HOST:PORT, without names or queries.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._token = _token(token_file)
        self._opener = urllib.request.build_opener(_NoRedirects)

    def page(self, after: str = "", limit: int = 1000) -> dict[str, Any]:
        """One page of the adapters that the token sees, with what the server says of base and embedder."""
        return self._ask("GET", "", {"after": after, "limit": limit})

    def entries(self) -> Iterator[Entry]:
        """All adapters that the token sees."""
        after, more = "", True
        while more:
            page = self.page(after)
            for each in page["data"]:
                yield _entry(each)
            after, more = str(page["last"]), bool(page["has_more"])

    def adapter(self, name: str) -> dict[str, Any]:
        """One of them, or what became of its upload."""
        return self._ask("GET", f"/{urllib.parse.quote(name, safe='')}")

    def remove(self, name: str) -> None:
        """Take one out."""
        self._ask("DELETE", f"/{urllib.parse.quote(name, safe='')}")

    def send(
        self, words: Mapping[str, str], files: Mapping[str, bytes | Path], *, replace: bool, wait: float
    ) -> dict[str, Any]:
        """Upload an adapter, and wait until it is checked.

        Args:
            words: fields of the form, with the name.
            files: fields with contents, or paths that are read piece by piece.
            replace: it takes the place of one of that name.
            wait: seconds.
        """
        line = uuid.uuid4().hex
        parts: list[tuple[bytes, bytes | Path]] = [
            (_head(line, name), value.encode()) for name, value in words.items()
        ]
        parts += [(_head(line, name, file=True), value) for name, value in files.items()]
        end = f"--{line}--\r\n".encode()
        length = sum(len(head) + _size(value) + 2 for head, value in parts) + len(end)
        headers = {"Content-Type": f"multipart/form-data; boundary={line}", "Content-Length": str(length)}

        def body() -> Iterator[bytes]:
            for head, value in parts:
                yield head
                yield from _pieces(value)
                yield b"\r\n"
            yield end

        method, path = ("PUT", f"/{urllib.parse.quote(words['name'], safe='')}") if replace else ("POST", "")
        return self._ask(method, path, {"wait": wait}, body(), headers, wait)

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> dict[str, Any]:
        """What the server answers.

        Raises:
            InputError: that the request cannot be served as it is.
            PoolError: it cannot be reached, fails, or is no such server.
        """
        address = f"{self.url}/v1/adapters{path}"
        address += f"?{urllib.parse.urlencode(query)}" if query else ""
        request = urllib.request.Request(address, method=method, data=body, headers=dict(headers or {}))
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=PATIENCE + wait) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise _refused(error, self.url) from error
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            why = first_line(error.reason if isinstance(error, urllib.error.URLError) else error)  # type: ignore[arg-type]
            sent = " It may have refused the upload as too large." if body is not None else ""
            raise PoolError(f"{self.url} cannot be reached: {why}. Is the server running there?{sent}") from error
        except ValueError as error:
            raise PoolError(f"{self.url} answers, but is no hilora server. Check the address.") from error
        if not isinstance(found, dict):
            raise PoolError(f"{self.url} answers, but is no hilora server. Check the address.")
        return found


def _refused(error: urllib.error.HTTPError, url: str) -> HiloraError:
    """What a server said of a request that it did not serve."""
    try:
        said = str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return PoolError(f"{url} answers with status {error.code}, not as a hilora server does. Check the address.")
    if error.code == 401:
        return InputError(f"{said} Give --token-file FILE, or set {TOKEN}.")
    return PoolError(said) if error.code >= 500 else InputError(said)


def _token(file: Path | None) -> str:
    if file is None:
        token = os.environ.get(TOKEN, "").strip()
    else:
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The token in {file} cannot be read: {first_line(error)}.") from error
        if not token:
            raise InputError(f"The file {file} holds no token.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("The token is none: expected one word, hlr_..., as `hilora serve token add` printed it.")
    return token


def _head(line: str, name: str, *, file: bool = False) -> bytes:
    given = f'; filename="{name}"\r\nContent-Type: application/octet-stream' if file else ""
    return f'--{line}\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'.encode()


def _size(value: bytes | Path) -> int:
    return len(value) if isinstance(value, bytes) else value.stat().st_size


def _pieces(value: bytes | Path) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
        return
    with value.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def _entry(said: Mapping[str, Any]) -> Entry:
    """An adapter, as far as a server tells of it."""
    try:
        return Entry(
            name=str(said["name"]),
            hash=str(said["hash"]),
            samples="",
            rank=int(said["rank"]),
            num_sites=int(said["sites"]),
            num_parameters=int(said["parameters"]),
            base_model="",
            num_samples=int(said["samples"]),
            enabled=bool(said["enabled"]),
            added=str(said["added"]),
            origin=str(said["origin"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PoolError(f"The server tells of an adapter as no hilora server does: {error!r}.") from error
