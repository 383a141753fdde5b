"""Backends that fail: a request is answered all the same, or its client hears in words that it is not."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from openai import APIError, OpenAI

from tests.gateway.conftest import Running


def events(answer: httpx2.Response) -> list[Any]:
    """The data of a stream."""
    found = [each.removeprefix("data: ") for each in answer.text.split("\n\n") if each]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def is_whole(answer: httpx2.Response) -> bool:
    """Whether an answer is all there."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        told = events(answer)
        return told[-1] == "[DONE]" and "error" not in json.dumps(told)
    return answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"].endswith("three")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [{"dies": "before"}, {"dies": "headers"}, {"status": 500}, {"status": 502}, {"status": 503}, {"engine": True}],
    ids=lambda wrong: "-".join(map(str, *[next(iter(wrong.items()))])),
)
@pytest.mark.parametrize("others", [0, 1])
def test_what_fails_before_a_word_is_asked_again(
    opened: Any, fakes: Any, wrong: dict[str, Any], stream: bool, others: int
) -> None:
    if not stream and set(wrong) & {"engine"}:
        wrong = {"status": 500}
    broken = fakes(**wrong, failures=1)
    gateway = opened(broken, *(fakes() for _ in range(others)))
    gateway.wait(lambda: gateway.gateway.fleet.backends[0].up)  # on a busy machine its first look may come to nothing
    found = gateway.ask("aaa abab", stream=stream)
    assert is_whole(found), found.text
    if not (wrong == {"dies": "headers"} and not stream):  # then there was nothing to break
        assert gateway.number("retries_total") == 1
        assert gateway.number("asked_total", backend="0", outcome="failed") == 1


def test_a_whole_answer_that_breaks_off_is_asked_for_again(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(dies="middle", failures=1), fakes())
    assert is_whole(gateway.ask("aaa abab"))
    assert gateway.number("retries_total") == 1


def test_a_stream_that_breaks_off_after_a_word_ends_with_an_error(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(dies="middle"), fakes(dies="middle"))
    found = gateway.ask("aaa abab", stream=True)
    told = events(found)
    assert found.status_code == 200
    assert told[-1]["error"]["code"] == "backend_lost"
    assert "[DONE]" not in told
    assert [each["choices"][0]["delta"]["content"] for each in told[1:-1]] == ["one "]
    assert gateway.number("retries_total") == 0
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "aaa abab"}]
        with pytest.raises(APIError, match="lost in the middle"):
            list(client.chat.completions.create(model="auto", messages=messages, stream=True))


def test_what_fails_everywhere_is_told_and_tried_only_so_often(opened: Any, fakes: Any, nowhere: str) -> None:
    first, second = fakes(status=500), fakes(status=500)
    gateway = opened(first, second)
    found = gateway.ask("aaa abab")
    assert (found.status_code, found.json()["error"]["message"]) == (500, "It does not work.")
    assert len(first.seen.bodies) + len(second.seen.bodies) == 3
    for stream in (False, True):
        found = opened(nowhere).ask("aaa abab", stream=stream)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "no_backend")
        assert int(found.headers["retry-after"]) >= 1


def test_nothing_is_lost_when_a_backend_is_killed(opened: Any, fakes: Any) -> None:
    """Of many requests under way at two backends, one of which is killed, all are answered, but for streams of which
    a word was told already: those end with an error."""
    held, other = fakes(hold=threading.Event()), fakes(pause=0.01)
    gateway = opened(held, other, limits={"running": 64})
    count = 48

    def ask(number: int) -> httpx2.Response:
        return gateway.ask(f"aaa abab {number}", stream=number % 2 == 0)

    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(ask, number) for number in range(count)]
        gateway.wait(lambda: held.seen.together >= 5)
        held.kill()
        found = [each.result() for each in asked]
    assert sum(map(is_whole, found)) == count
    assert gateway.number("asked_total", backend="0", outcome="failed") >= 5


def test_streams_that_were_told_a_word_when_their_backend_is_killed_end_so(opened: Any, fakes: Any) -> None:
    first, second = fakes(pause=0.3), fakes(pause=0.3)
    gateway = opened(first, second, limits={"running": 64}, method="selection")
    gateway.says("aaa abab"), gateway.says("xyz zzy")
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(gateway.ask, f"aaa {number}", stream=True) for number in range(16)]
        gateway.wait(lambda: min(first.seen.together, second.seen.together) >= 2)
        time.sleep(0.2)  # a word or two
        on_first = len(first.at_work) and sum(first.at_work.values())
        first.kill()
        found = [each.result() for each in asked]
    whole = sum(map(is_whole, found))
    broken = [answer for answer in found if not is_whole(answer)]
    assert on_first > 0
    assert whole == len(found) - len(broken)
    for answer in broken:
        told = events(answer)
        assert told[-1]["error"]["code"] == "backend_lost"
        assert len(told) > 1


def test_a_backend_that_is_started_again_is_told_of_its_adapters_again(opened: Any, fakes: Any) -> None:
    fake = fakes()
    gateway = opened(fake)
    said = gateway.says("aaa abab")
    name = said.split(":")[0]
    fake.adapters.clear()  # so quickly that nobody saw it go
    assert gateway.says("aaa abab") == said
    assert gateway.number("asked_total", backend="0", outcome="forgotten") == 1
    fake.kill()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(gateway.ask, "aaa abab")
        gateway.wait(lambda: not gateway.gateway.fleet.backends[0].up)
        fake.start()
        found = waiting.result()
    assert found.status_code in (200, 503)  # whether it came before it was known that nobody is there
    gateway.wait(lambda: gateway.ask("aaa abab").status_code == 200)
    assert fake.seen.loads[name] == 3


def test_a_request_that_was_under_way_waits_for_its_only_backend_to_come_back(opened: Any, fakes: Any) -> None:
    fake = fakes(hold=threading.Event())
    gateway = opened(fake)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(gateway.ask, "aaa abab", stream=stream) for stream in (False, True)]
        gateway.wait(lambda: fake.seen.together == 2)
        fake.kill()
        fake.knobs.hold.set()
        fake.start()
        assert all(is_whole(each.result()) for each in asked)


def test_a_backend_that_is_down_at_the_start_serves_when_it_comes_up(opened: Any, fakes: Any) -> None:
    fake = fakes()
    fake.kill()
    gateway = opened(fake)
    assert any("is down" in line for line in gateway.said)
    assert gateway.client.get("/readyz").status_code == 503
    refused = gateway.ask("aaa abab")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_backend")
    fake.start()
    gateway.wait(lambda: gateway.client.get("/readyz").status_code == 200)
    assert is_whole(gateway.ask("aaa abab"))


def test_a_backend_of_which_nothing_is_heard_is_given_up(opened: Any, fakes: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.gateway.standing.LOST", 0.5)
    hangs, other = fakes(hold=threading.Event()), fakes()
    gateway = opened(hangs, other)
    with ThreadPoolExecutor(1) as threads:
        gateway.gateway.fleet.backends[1].up = False
        asked = threads.submit(gateway.ask, "x", model="base")
        gateway.wait(lambda: hangs.seen.together == 1)
        hangs.knobs.healthy = False
        assert is_whole(asked.result())


def test_the_deadline_ends_what_takes_too_long(opened: Any, fakes: Any) -> None:
    gateway = opened(fakes(hold=threading.Event()), limits={"deadline": 1.0})
    found = gateway.ask("aaa abab")
    assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
    slow = opened(fakes(pause=0.6), limits={"deadline": 1.0})
    told = events(slow.ask("aaa abab", stream=True))
    assert told[-1]["error"]["code"] == "timeout"
    assert len(told) > 1


def test_what_runs_at_the_end_may_end_and_what_does_not_is_told_so(opened: Any, fakes: Any) -> None:
    fake = fakes(pause=0.3)
    gateway: Running = opened(fake)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(gateway.ask, "aaa abab", stream=stream) for stream in (False, True)]
        gateway.wait(lambda: fake.seen.together == 2)
        gateway.server.should_exit = True
        assert all(is_whole(each.result()) for each in asked)
    gateway.thread.join(20)
    stuck = fakes(pause=60)
    gateway = opened(stuck, limits={"drain": 0.5})
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(gateway.ask, "aaa abab", stream=stream) for stream in (False, True)]
        gateway.wait(lambda: stuck.seen.together == 2)
        time.sleep(0.2)
        gateway.server.should_exit = True
        whole, stream = (each.result() for each in asked)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "shutting_down")
    assert events(stream)[-1]["error"]["code"] == "shutting_down"
