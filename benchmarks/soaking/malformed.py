"""Requests that are nearly right, or not at all: each is answered, none by a failure of the server's own."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote_from_bytes

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from soaking.made import Server, bench, server
from soaking.nearly import BODIES, METHODS, PATHS, TYPES, changed, form, written
from soaking.raw import Held, warm

WHOLE = 11_000
"""Requests at scale 1, of all kinds together; of some paths there is nothing that the document calls wrong."""
OURS = re.compile(rb"Traceback|site-packages|/hilora/|\.py\b|File \"")
"""What no answer may hold."""
VALUES = [b"-1", b"nan", b"inf", b"1e999", b"9" * 5000, b"%00", b"%ff", b"%", b"", b"1&limit=2", b"%F0%9F%99%82"]
"""Of parameters in a path."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=12,
)


@dataclass
class Seen:
    """What came for requests of a kind."""

    server: Server
    what: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def ask(self, method: bytes, path: bytes, body: bytes, *headers: bytes) -> None:
        """Send, and look at what comes."""
        lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *headers]
        sent = b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
        host, port = self.server.url.removeprefix("http://").split(":")
        got = b""
        try:
            with socket.create_connection((host, int(port)), timeout=60) as client:
                client.sendall(sent)
                while part := client.recv(65536):
                    got += part
        except ConnectionError:  # an answer came before all was sent
            self.counts["ended"] += not got
        except TimeoutError:
            self.wrong.append(f"no answer: {sent[:300]!r}")
        if got:
            head, _, told = got.partition(b"\r\n\r\n")
            chunks = b"transfer-encoding: chunked" in head.lower()
            self.look(int(head.split()[1]), told, sent, empty=method == b"HEAD", chunks=chunks)

    def look(self, status: int, told: bytes, sent: bytes, *, empty: bool = False, chunks: bool = False) -> None:
        """Judge an answer."""
        self.counts[str(status)] += 1
        why = ""
        if status >= 500 and status not in (503, 504):
            why = "a failure"
        elif OURS.search(told) or str(self.server.pool).encode() in told:
            why = "says what is the server's own"
        elif chunks and b'"internal_error"' in told:
            why = "a failure in a stream"
        elif status >= 400 and not empty and not is_error(told):
            why = "not OpenAI's form"
        if why:
            self.wrong.append(f"{why}: {status} {told[:300]!r} for {sent[:600]!r}")

    @property
    def row(self) -> dict[str, Any]:
        """The row."""
        return {"what": self.what, "counts": dict(sorted(self.counts.items())), "wrong": self.wrong}


def is_error(told: bytes) -> bool:
    """Whether an error has OpenAI's form."""
    try:
        error = json.loads(told)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"] and error["type"])


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The rows."""
    count, rng = max(8, round(WHOLE * scale / 5)), Random(seed)
    with bench(home) as made, server(made, ["--new-tokens", "4"]) as served:
        warm(served)
        held = Held(served)
        for call in (described, nearly, rubbish, paths, forms):
            seen = Seen(served, (call.__doc__ or "").partition(".")[0])
            call(seen, count, rng)
            yield seen.row
            if call is nearly:  # methods that were asked for stay ready, up to some; others leave nothing
                held.weigh()
        log = [line[-600:] for line in served.said().splitlines() if "Traceback" in line]
        asked = served.ask("alpha")
        wrong = held.wrong() + log + ([] if "choices" in asked else [f"not well afterwards: {asked}"])
        yield {"what": "afterwards", "counts": {"errors in the log": len(log)}, "wrong": wrong}


def often(strategy: Any, count: int, number: int, call: Callable[[Any], None]) -> None:
    """Call with so many examples."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: Any) -> None:
        call(example)

    each()


def described(seen: Seen, count: int, rng: Random) -> None:
    """Made from the OpenAPI document, right and wrong."""
    document = seen.server.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [(path, method) for path, each in document["paths"].items() for method in each]
    modes = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    kinds = [(*each, mode) for each in operations for mode in modes]

    def call(case: Any) -> None:
        response = case.call(base_url=seen.server.url, timeout=60)
        sent = f"{case.method} {case.path} {case.path_parameters} {case.query} {case.headers} {case.body!r:.500}"
        told, chunks = response.content, "text/event-stream" in response.headers.get("content-type", [""])[0]
        seen.look(
            response.status_code, told, sent.encode(errors="replace"), empty=case.method == "HEAD", chunks=chunks
        )

    for path, method, mode in rng.sample(kinds, len(kinds)):
        share = -(-count // len(kinds))
        try:
            often(schema[path][method].as_strategy(generation_mode=mode), share, rng.randrange(2**32), call)
        except Unsatisfiable:  # nothing can be wrong there
            seen.counts["not made"] += share


def nearly(seen: Seen, count: int, rng: Random) -> None:
    """Bodies with something odd at one place."""

    def call(value: Any) -> None:
        path, body = rng.choice(BODIES)
        sent = written(changed(body, rng, value))
        seen.ask(b"POST", path, sent, b"Content-Type: application/json")

    often(JSON, count, rng.randrange(2**32), call)


def rubbish(seen: Seen, count: int, rng: Random) -> None:
    """Bodies that are no JSON, or not said to be."""
    for _ in range(count):
        path, body = rng.choice(BODIES)
        sent = json.dumps(body).encode(rng.choice(["utf-8", "utf-8", "utf-16", "utf-32", "utf-8-sig"]))
        place, kind = rng.randrange(len(sent)), rng.randrange(6)
        more = rng.randbytes(rng.randrange(1, 40))
        made = [
            more,
            sent[:place],
            sent[:place] + more + sent[place:],
            sent[:place] + bytes([sent[place] ^ 1 << rng.randrange(8)]) + sent[place + 1 :],
            rng.choice([b"[", b'{"a":', b'"', b"[]"]) * rng.choice([1, 10, 100_000]),
            sent,
        ][kind]
        given_type = rng.choice(TYPES) if kind == 5 else b"application/json"
        more_headers = rng.choice(
            [b"Accept: */*", b"Accept: \xff", b"Content-Encoding: gzip", b"Authorization: Bearer \xe9"]
        )
        seen.ask(b"POST", path, made, b"Content-Type: " + given_type, *([more_headers] * (rng.random() < 0.2)))


def paths(seen: Seen, count: int, rng: Random) -> None:
    """Odd paths and methods."""
    for _ in range(count):
        path = rng.choice(PATHS)
        if rng.random() < 0.6:
            odd = rng.choice(
                [rng.randbytes(rng.randrange(1, 30)), "\0../é/🙂%00\n".encode(), b"x" * 5000, b"..%2f.."]
            )
            path += b"/" * (rng.random() < 0.8) + quote_from_bytes(odd, b"/" * (rng.random() < 0.5)).encode()
        if rng.random() < 0.3:
            path += (
                b"?"
                + rng.choice([b"limit=", b"wait=", b"after=", b"tenant=", b"a[]="])
                + rng.choice(
                    [
                        b"-1",
                        b"nan",
                        b"inf",
                        b"1e999",
                        b"9" * 5000,
                        b"%00",
                        b"%ff",
                        b"%",
                        b"",
                        b"1&limit=2",
                        b"%F0%9F%99%82",
                    ]
                )
            )
        body = rng.choice([b"", b"{}", b"[]", rng.randbytes(20)])
        seen.ask(rng.choice(METHODS), path, body, b"Content-Type: " + rng.choice(TYPES))


def forms(seen: Seen, count: int, rng: Random) -> None:
    """Odd forms."""
    files = {name: content for name, (_, content) in seen.server.bench.form(7).items()}
    for number in range(count):
        kind, body = form(files, rng, number)
        seen.ask(b"POST", rng.choice([b"/v1/adapters", b"/v1/adapters?wait=60"]), body, b"Content-Type: " + kind)
