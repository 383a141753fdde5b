"""What a gateway adds to a request, in front of a backend that answers at once.

    python benchmarks/gateway.py --json benchmarks/gateway.jsonl        # a few minutes

Each round asks in turns, on one connection each: the backend itself; the gateway for the base model; the gateway to
route. Differences are of one round, in milliseconds, as medians and 95th percentiles: `base_over_ms` is a request
for the base less one to the backend; `auto_over_ms` the same of a routed one, less what routing took, which the
gateway says in its Server-Timing (`routing_ms`: nearly all of it is the embedder's). Cases: one prompt again and
again; prompts of several adapters in turn; a stream of --chunks events; --clients that each ask again as soon as they
have an answer, on the gateway's cores: `per_s`. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lines import Line, write

from hilora.evaluate.setup import setup

BASE = "SmolLM2-135M"
PROMPTS = (
    "Please add spaces between words: Thechildrenwalkedtoschoolintherain.",
    "What is 127 + 250?",
    "Is the sentiment of this review positive or negative? A film to fall asleep to.",
    "Translate to German: The weather is fine today, and tomorrow it will rain.",
)
ROUTING = re.compile(r"routing;dur=([\d.]+)")
CHAT = "/v1/chat/completions"
READY = 300


class Instant(asyncio.Protocol):
    """A backend that answers at once, in as little time as Python lets it.

    Args:
        chunks: of a stream.
    """

    def __init__(self, chunks: int) -> None:
        self.chunks, self.left = chunks, b""

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        self.left += data
        while True:
            head, end, rest = self.left.partition(b"\r\n\r\n")
            length = int((re.search(rb"(?i)content-length: (\d+)", head) or [0, 0])[1])
            if not end or len(rest) < length:
                return
            self.left = rest[length:]
            self.transport.write(self.answer(head.split(b" ", 2)[1].decode(), rest[:length]))

    def answer(self, path: str, body: bytes) -> bytes:
        """What a request is answered with."""
        asked = json.loads(body) if body else {}
        model, pool = asked.get("model", ""), POOL
        if path == "/v1/models":
            return whole({"data": [{"id": BASE, "root": BASE, "parent": None}]})
        if path.endswith("_lora_adapter"):
            pool.add(asked["lora_name"])
            return whole("Success")
        if path == "/metrics":
            return whole("")
        if model and model != BASE and model not in pool:
            return whole({"error": {"message": "no", "type": "NotFoundError", "code": 404}}, 404)
        said = {"id": "x", "object": "chat.completion", "created": 1, "model": model}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "It is."}
            return whole(said | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        piece = json.dumps(said | {"choices": [{"index": 0, "delta": {"content": "It "}, "finish_reason": None}]})
        events = [f"data: {piece}\n\n".encode()] * self.chunks + [b"data: [DONE]\n\n"]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in events) + b"0\r\n\r\n"


POOL: set[str] = set()
"""Adapters that the backend was told of, in its process."""


def whole(body: Any, status: int = 200) -> bytes:
    """An answer."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def serve_instantly(chunks: int) -> None:
    """The backend's process; says its port."""
    server = await asyncio.get_running_loop().create_server(lambda: Instant(chunks), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def backend(chunks: int) -> Iterator[int]:
    """A backend in a process of its own; its port."""
    command = [sys.executable, __file__, "--instant", "--chunks", str(chunks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextlib.contextmanager
def gateway(pool: str, method: str, port: int) -> Iterator[int]:
    """A gateway in a process of its own, ready; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hilora", "gateway", "--pool", pool, "--backend", f"http://127.0.0.1:{port}"]
        command += ["--adapters", folder, "--method", method, "--port", str(own)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(READY):
                if process.poll() is not None:
                    raise SystemExit(f"The gateway ended with {process.returncode}.")
                with contextlib.suppress(OSError), contextlib.closing(connect(own)) as connection:
                    connection.request("GET", "/readyz")
                    if connection.getresponse().status == http.client.OK:
                        break
                time.sleep(0.2)
            yield own
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def ask(connection: http.client.HTTPConnection, model: str, prompt: str, stream: bool) -> tuple[float, float]:
    """Milliseconds of a whole answer, and those of routing in it."""
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": model, "messages": messages, "stream": stream, "max_tokens": 16})
    began = time.perf_counter()
    connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    took = 1e3 * (time.perf_counter() - began)
    if answer.status != http.client.OK:
        raise SystemExit(f"The server refuses: {content.decode()}")
    found = ROUTING.search(answer.getheader("Server-Timing") or "")
    return took, float(found[1]) if found else 0.0


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {name: round(float(np.quantile(values, at)), 3) for name, at in (("p50", 0.5), ("p95", 0.95))}


def turns(ports: tuple[int, int], rounds: int, prompts: Sequence[str], stream: bool) -> Line:
    """What a gateway adds, round by round; every other round goes backwards, the first few warm up."""
    with contextlib.closing(connect(ports[0])) as straight, contextlib.closing(connect(ports[1])) as through:
        ways: dict[str, Callable[[str], tuple[float, float]]] = {
            "direct": lambda prompt: ask(straight, BASE, prompt, stream),
            "base": lambda prompt: ask(through, "base", prompt, stream),
            "auto": lambda prompt: ask(through, "auto", prompt, stream),
        }
        found: list[dict[str, tuple[float, float]]] = []
        for number in range(rounds + len(prompts) + 5):
            order = list(ways) if number % 2 else list(ways)[::-1]
            prompt = prompts[number % len(prompts)]
            found.append({way: ways[way](prompt) for way in order})
    counted = found[-rounds:]
    return {
        "rounds": rounds,
        "direct_ms": spread([each["direct"][0] for each in counted]),
        "base_over_ms": spread([each["base"][0] - each["direct"][0] for each in counted]),
        "auto_over_ms": spread([each["auto"][0] - each["auto"][1] - each["direct"][0] for each in counted]),
        "routing_ms": spread([each["auto"][1] for each in counted]),
    }


def crowd(port: int, model: str, clients: int, each: int) -> Line:
    """Many at once: each asks again as soon as it has an answer."""

    def work(number: int) -> list[float]:
        with contextlib.closing(connect(port)) as connection:
            return [ask(connection, model, PROMPTS[number % len(PROMPTS)], False)[0] for _ in range(each)]

    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        took = [one for all_of in threads.map(work, range(clients)) for one in all_of]
        seconds = time.perf_counter() - began
    return {"clients": clients, "model": model, "per_s": round(len(took) / seconds, 1), "whole_ms": spread(took)}


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results."""
    yield setup("benchmarks/gateway.py", pool=args.pool, method=args.method, chunks=args.chunks)
    with backend(args.chunks) as port, gateway(args.pool, args.method, port) as own:
        for case, prompts, stream in (
            ("one prompt", PROMPTS[:1], False),
            ("several adapters", PROMPTS, False),
            ("stream", PROMPTS[:1], True),
        ):
            yield {"case": case, **turns((port, own), args.rounds, prompts, stream)}
        for model in ("base", "auto"):
            yield {"case": "clients", **crowd(own, model, args.clients, max(1, args.rounds // args.clients))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--method", default="selection")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--instant", action="store_true", help="be the backend")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.instant:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_instantly(args.chunks))
        return
    write(args.json, measure(args))


if __name__ == "__main__":
    main()
