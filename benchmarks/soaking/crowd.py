"""Clients that ask a service at random: whole answers and streams, all ways to name a model, and some that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import httpx2

from hilora.pool.view import Entry
from soaking.things import Things

REFUSALS = {(404, "model_not_found"), (403, "insufficient_permissions"), (400, "invalid_value")}
"""Of an adapter that is gone, one that is disabled, and a list with one that is gone."""


class Service(Protocol):
    """Who is asked."""

    things: Things

    @property
    def entries(self) -> Sequence[Entry]:
        """Adapters that there are."""


@dataclass
class Asked:
    """One request, and how it ended: answered, refused, or left by its client."""

    given: dict[str, Any]
    prompt: str
    leaves: bool
    ends: list[str] = field(default_factory=list)
    why: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    reason: str = ""
    code: str = ""  # of a refusal
    wrong: list[str] = field(default_factory=list)


class Crowd:
    """One client, who asks until it is told to stop.

    Args:
        house: whom it asks.
        client: its connections.
        seed: of what it asks.
    """

    def __init__(self, house: Service, client: httpx2.AsyncClient, seed: int) -> None:
        self.house, self.client, self.random = house, client, Random(seed)
        self.asked: list[Asked] = []
        self.enough = False

    def draw(self) -> Asked:
        """A request."""
        rng, things = self.random, self.house.things
        prompt = things.prompt(rng)
        given: dict[str, Any] = things.given(prompt) | {"temperature": 0, "max_tokens": rng.randint(*things.tokens)}
        given |= {"seed": rng.randrange(3), "stream": rng.random() < 0.5, "hilora": {"explain": True}}
        given["model"] = "auto"
        kind, names = rng.random(), [*things.staying[:2], *things.coming]
        if kind < 0.3:
            given["model"] = rng.choice(names)
        elif kind < 0.4:
            given["model"] = rng.choice(self.house.entries).hash
        elif kind < 0.5:
            given["model"] = "base"
        else:
            given["hilora"]["method"] = rng.choice(things.methods)
            if kind < 0.6:
                given["hilora"]["allow"] = rng.sample(names, 2)
        return Asked(given, prompt, leaves=rng.random() < 0.25)

    async def ask(self) -> None:
        """One request after the other."""
        while not self.enough:
            await self.one(self.draw())

    async def one(self, asked: Asked) -> None:
        """One request, to its end."""
        self.asked.append(asked)
        work = self._streamed(asked) if asked.given["stream"] else self._whole(asked)
        limit = self.random.uniform(0.01, 0.1) if asked.leaves and not asked.given["stream"] else 300
        try:
            await asyncio.wait_for(work, limit)
        except TimeoutError:
            asked.ends.append("left" if asked.leaves else "never")
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            asked.wrong.append(f"broken off: {error!r}")

    async def _whole(self, asked: Asked) -> None:
        answer = await self.client.post(self.house.things.path, json=asked.given)
        if self._refused(asked, answer.status_code, answer.content):
            return
        (choice,) = answer.json()["choices"]
        asked.text, asked.reason = self.house.things.said(choice), choice["finish_reason"]
        asked.why = answer.json()["hilora"]
        asked.ends.append("answered")

    async def _streamed(self, asked: Asked) -> None:
        after = self.random.randrange(1, 6) if asked.leaves else 1000
        async with self.client.stream("POST", self.house.things.path, json=asked.given) as answer:
            if self._refused(asked, answer.status_code, await answer.aread() if answer.status_code != 200 else b""):
                return
            async for line in answer.aiter_lines():
                if not line or line.startswith(":"):  # a comment, that the line is alive
                    continue
                if line == "data: [DONE]":
                    asked.wrong += [] if asked.reason else ["done, and no reason was told"]
                    asked.ends.append("answered")
                    continue
                asked.wrong += ["something came after the end"] if asked.ends or asked.reason else []
                chunk = json.loads(line.removeprefix("data: "))
                (choice,) = chunk["choices"]
                asked.why = asked.why or chunk["hilora"]
                asked.text += self.house.things.said(choice)
                asked.reason = choice["finish_reason"] or ""
                after -= 1
                if not after:
                    asked.ends.append("left")
                    return

    def _refused(self, asked: Asked, status: int, content: bytes) -> bool:
        if status != 200:
            error = json.loads(content)["error"]
            asked.wrong += [] if (status, error["code"]) in REFUSALS else [f"refused: {status} {error}"]
            asked.ends.append("refused")
            asked.code = str(error["code"])
        return status != 200
