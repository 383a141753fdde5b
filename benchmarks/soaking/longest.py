"""Prompts as long as the context, beside short ones that stream: these go on, and all answers are as alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from soaking.made import EXACT, Server, bench, server
from soaking.raw import Held, warm

SHORT = [{"model": model, "prompt": "ab ba ab " * n} for model, n in (("auto", 1), ("alpha", 3), ("base", 2))]
ALIKE = {"temperature": 0, "seed": 5}


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The rows."""
    context = max(1024, round(8192 * scale))
    with bench(home) as made:
        model = made.tiny.model("llama")
        model.config.max_position_embeddings = context
        model.save_pretrained(home / "base")
        made.tiny.tokenizer().save_pretrained(home / "base")
        with server(made, EXACT) as served:
            warm(served)
            longer = Longer(served, context)
            for tokens in (context - 1, context, context + 1):
                yield asyncio.run(longer.beside(tokens, max(1, round(6 * scale))))


class Longer:
    """Long prompts beside short ones.

    Args:
        server: answers.
        context: tokens that the base model holds.
    """

    def __init__(self, server: Server, context: int) -> None:
        self.server, self.context = server, context
        self.bodies = [ALIKE | each | {"max_tokens": 150} for each in SHORT]
        self.solo = [self.server.client.post("/v1/completions", json=body).json()["choices"] for body in self.bodies]

    async def beside(self, tokens: int, count: int) -> dict[str, Any]:
        """So many times a prompt of so many tokens, while short ones stream one after the other."""
        body = ALIKE | {"model": "auto", "prompt": "ab ba" * (tokens // 5) + "a" * (tokens % 5), "max_tokens": 1}
        began = time.perf_counter()
        alone = self.server.client.post("/v1/completions", json=body, timeout=300)
        counts = Counter({"status": alone.status_code, "alone, ms": round(1e3 * (time.perf_counter() - began))})
        wrong = self.judge(tokens, alone)
        held = Held(self.server)
        reading, gaps = asyncio.Event(), list[tuple[bool, float]]()
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=300) as client:
            streams = [asyncio.create_task(self.stream(client, n, reading, gaps, wrong)) for n in range(len(SHORT))]
            while len(gaps) < 30:
                await asyncio.sleep(0.01)
            for _ in range(count):
                reading.set()
                began, before = time.perf_counter(), len(gaps)
                found = await client.post("/v1/completions", json=body)
                counts["longest beside others, ms"] = max(
                    counts["longest beside others, ms"], round(1e3 * (time.perf_counter() - began))
                )
                counts["tokens of others meanwhile"] += len(gaps) - before
                reading.clear()
                if found.status_code != alone.status_code or found.json().get("choices") != alone.json().get(
                    "choices"
                ):
                    wrong.append(f"another answer than alone: {found.text[:300]} {alone.text[:300]}")
                before = len(gaps)
                while len(gaps) < before + 30:
                    await asyncio.sleep(0.01)
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        for meanwhile, name in ((True, "longest gap of others meanwhile, ms"), (False, "longest gap else, ms")):
            counts[name] = round(1e3 * max((gap for was, gap in gaps if was == meanwhile), default=0))
        if alone.status_code == 200 and counts["tokens of others meanwhile"] < 3 * count:
            wrong.append(f"others got no tokens while a long prompt was read: {counts}")
        return {
            "what": f"a prompt of {tokens:,} tokens of {self.context:,}",
            "counts": counts,
            "wrong": wrong + held.wrong(),
        }

    def judge(self, tokens: int, found: Any) -> list[str]:
        """A prompt that leaves room for a token is answered, others are refused."""
        told = found.json()
        if tokens < self.context:
            right = found.status_code == 200 and told["usage"]["prompt_tokens"] == tokens
        else:
            right = found.status_code == 400 and told["error"]["code"] == "context_length_exceeded"
        return [] if right else [f"{tokens} tokens of {self.context}: {found.text[:300]}"]

    async def stream(
        self, client: Any, number: int, reading: asyncio.Event, gaps: list[tuple[bool, float]], wrong: list[str]
    ) -> None:
        """Ask one of the short ones over and over; note each gap between tokens, and whether a long one was read."""
        while True:
            text, last, was = "", 0.0, reading.is_set()
            async with client.stream(
                "POST", "/v1/completions", json=self.bodies[number] | {"stream": True}
            ) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    now, read = time.perf_counter(), reading.is_set()
                    if last:
                        gaps.append((read or was, now - last))
                    last, was = now, read
                    text += "".join(each["text"] for each in json.loads(line[6:])["choices"])
            if text != self.solo[number][0]["text"]:
                wrong.append(f"another text than alone: {text!r} {self.solo[number]}")
