"""Two gateways over two backends, behind a real nginx: what fails on the way costs nobody his answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.front import PATIENCE, nginx

TASKS = ("aaa abab", "xyz zzy", "mno onm", "123 3211")
REQUESTS = 48


@pytest.fixture
def chain(tmp_path: Path, opened: Callable[..., Any], fakes: Callable[..., Any]) -> Iterator[Any]:
    """(nginx's URL, gateways, backends)."""
    backends = [fakes(pause=0.02), fakes(pause=0.02)]
    gateways = [opened(*backends, method="mixture") for _ in range(2)]
    with nginx(tmp_path, *(each.url.removeprefix("http://") for each in gateways)) as port:
        yield f"http://127.0.0.1:{port}/v1", gateways, backends


def asked(url: str, number: int) -> str:
    """An answer, streamed or not, by OpenAI's client as it is, which asks again where it is told to."""
    with openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE, max_retries=0) as client:
        told: Any = {"model": "auto", "messages": [{"role": "user", "content": TASKS[number % len(TASKS)]}]}
        if number % 2:
            return str(client.chat.completions.create(**told).choices[0].message.content)
        pieces = client.chat.completions.create(**told, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def outcomes(url: str, meanwhile: Callable[[], Any]) -> Counter[str]:
    """How many requests were answered, and how the others failed, while something else happens."""

    def one(number: int) -> str:
        try:
            return "answered" if asked(url, number) else "empty"
        except openai.APIError as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(one, number) for number in range(REQUESTS)]
        while sum(future.done() for future in futures) < REQUESTS // 4:
            time.sleep(0.01)
        meanwhile()
        return Counter(future.result() for future in futures)


def test_everybody_is_answered_and_both_gateways_use_one_folder(chain: Any, tmp_path: Path) -> None:
    url, gateways, backends = chain
    assert outcomes(url, lambda: None) == {"answered": REQUESTS}
    assert all(gateway.number("requests_total", model="auto") > 0 for gateway in gateways)
    kept = {path.name for path in (tmp_path / "adapters").iterdir()}
    asked_for = {body["model"] for backend in backends for body in backend.seen.bodies}
    assert asked_for - kept <= {"hilora-" + "0" * 16}  # which a gateway asks for to see that unknown ones are refused
    assert asked_for & kept


def test_a_backend_that_dies_costs_no_answer_that_had_not_begun(chain: Any) -> None:
    url, _, (dying, _) = chain
    found = outcomes(url, dying.kill)
    lost = {why: count for why, count in found.items() if why != "answered"}
    assert all("lost in the middle" in why for why in lost)  # told, and only to those who had heard a word
    assert found["answered"] >= REQUESTS - 8


def test_a_gateway_that_ends_in_order_costs_no_answer(chain: Any) -> None:
    url, (ending, _), _ = chain

    def end() -> None:
        ending.server.should_exit = True

    found = outcomes(url, end)
    assert found["answered"] == REQUESTS, found
