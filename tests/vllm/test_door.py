"""What a client asks of vLLM's server comes to vLLM as it was, or with a composition of the server's own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse, StreamingResponse

from hilora import Planner, Pool, get_method
from hilora.errors import HiloraError, InputError
from hilora.gateway.chooser import Chooser
from hilora.methods.table import METHODS
from hilora.vllm import route
from hilora.vllm.door import DEFAULT_METHODS, Door, Hall, check, methods
from hilora.vllm.folders import Folders
from hilora.vllm.front import Front
from hilora.vllm.replies import Added
from hilora.vllm.routes import routes
from hilora.vllm.wire import FIELD, encode

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Served:
    """A stand-in for vLLM's API server, which tells what comes to it, and a client of it.

    Attributes:
        came: body of each request, and the composition that its engine would use.
    """

    def __init__(self, pool: Pool, embedder: Any, folders: Path) -> None:
        self.pool, self.embedder, self.came = pool, embedder, list[Any]()
        self.front = Front(Folders(pool.path, folders), 4)
        self.hall = Hall(self.front.folders)
        app = FastAPI()
        app.state.openai_serving_models = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name="served")], lora_requests={"stock": None}
        )
        app.add_middleware(Door, hall=self.hall)
        app.include_router(routes(lambda: self.hall.chooser))

        @app.post("/{path:path}", response_model=None)
        async def answer(request: Request) -> Any:
            body = await request.json()
            assert int(request.headers["content-length"]) == len(await request.body())
            if body.get("model") not in ("served", "stock"):
                return JSONResponse({"error": {"code": 404}}, 404)

            async def pieces() -> Any:
                self.came.append((body, self.front.take(body.get("extra_args"), body["model"] == "stock")))
                for number in range(2):
                    yield f'data: {{"number": {number}}}\n\n'.encode()
                yield b"data: [DONE]\n\n"

            if body.get("stream"):
                return StreamingResponse(pieces(), media_type="text/event-stream")
            self.came.append((body, self.front.take(body.get("extra_args"), body["model"] == "stock")))
            return JSONResponse({"id": "x", "é": "ü"})

        @app.get("/v1/models")
        async def models() -> Any:
            return {"object": "list", "data": [{"id": "served"}, {"id": "stock"}, {"id": "alpha"}]}

        self.client = TestClient(app)

    def open(self) -> None:
        """What happens when the engine is there."""
        self.hall.chooser = Chooser(self.pool, "hilora", None, ["hilora-plus"], embedder=self.embedder, check=check)

    def ask(self, path: str = CHAT, **fields: Any) -> Any:
        """Send a request."""
        prompt = {"messages": [{"role": "user", "content": "abab abba"}]} if path == CHAT else {"prompt": "abab abba"}
        return self.client.post(path, json={"temperature": 0.5} | prompt | fields)


@pytest.fixture
def served(shared_pool: Any, embedder: Any, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(shared_pool("llama")[1].path, tmp_path / "pool")
    found = Served(Pool.open(tmp_path / "pool"), embedder, tmp_path / "folders")
    found.open()
    yield found
    assert found.hall.chooser is not None
    found.hall.chooser.close()


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
def test_auto_is_served_by_what_a_planner_routes_it_to(served: Served, path: str, stream: bool) -> None:
    asked = {
        "model": "auto",
        "hilora": {"seed": 5, "method": "hilora", "explain": True},
        "stream": stream,
        "top_k": 3,
    }
    reply = served.ask(path, **asked)
    planner = Planner(served.pool, get_method("hilora"), served.embedder)
    (routed,) = route(planner, ["abab abba"], seed=5)
    ((body, composition),) = served.came
    assert composition == routed.composition
    assert (body["model"], body["seed"], body["top_k"], body["temperature"]) == ("served", 5, 3, 0.5)
    assert "hilora" not in body
    names = ",".join(choice.name for choice in routed.choices)
    shown = [reply.headers[f"x-hilora-{name}"] for name in ("adapters", "method", "seed")]
    assert shown == [names, "hilora", "5"]
    if stream:
        events = reply.text.split("\n\n")
        assert events[1:] == ['data: {"number": 1}', "data: [DONE]", ""]
        told = json.loads(events[0].removeprefix("data: "))
        assert told["number"] == 0
    else:
        told = reply.json()
        assert (told["id"], told["é"]) == ("x", "ü")
    assert [each["rocs"] for each in told["hilora"]["adapters"]] == [choice.rocs for choice in routed.choices]
    assert all(served.front.folders.has(each.content) for each in composition.parts)


def test_base_is_the_base_alone_and_an_adapter_is_itself_whole(served: Served) -> None:
    entry = served.pool.entries[0]
    for model, wanted in (("base", []), (entry.name, [entry.hash]), (entry.hash, [entry.hash])):
        reply = served.ask(TEXT, model=model, prompt=["several", "prompts"])
        assert reply.status_code == 200
        body, composition = served.came.pop()
        parts = () if composition is None else composition.parts
        assert [part.content for part in parts if part.is_whole and part.factor == 1] == wanted
        assert (len(parts), body["prompt"]) == (len(wanted), ["several", "prompts"])


def test_what_vllm_itself_serves_comes_to_it_as_it_was(served: Served) -> None:
    for model in ("served", "stock"):
        reply = served.ask(model=model, seed=None, extra=[1])
        ((body, composition),) = served.came
        assert (body["model"], body["seed"], body["extra"], composition) == (model, None, [1], None)
        assert "hilora" not in reply.json()
        assert "x-hilora-seed" not in reply.headers
        served.came.clear()
    assert served.ask(model="stock", hilora={"seed": 1}).json()["error"]["param"] == "hilora"
    assert served.ask(model="nobody").status_code == 404


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses", "/inference/v1/generate"])
@pytest.mark.parametrize("model", ["served", "base"])
def test_a_composition_that_a_client_sends_is_dropped(served: Served, path: str, model: str) -> None:
    (other,) = route(Planner(served.pool, get_method("selection"), served.embedder), ["zzy xyz"])
    assert other.composition is not None
    reply = served.ask(path, model=model, extra_args={FIELD: encode(other.composition)})
    if reply.status_code == 404:
        assert (path not in (CHAT, TEXT), model) == (True, "base")  # the name is known at two paths only
        assert not served.came
    else:
        assert [composition for _, composition in served.came] == [None]


def test_before_the_engine_is_there_nothing_is_routed(served: Served) -> None:
    chooser, served.hall.chooser = served.hall.chooser, None
    assert served.ask(model="auto").status_code == 404
    assert [card["id"] for card in served.client.get("/v1/models").json()["data"]] == ["served", "stock", "alpha"]
    served.hall.chooser = chooser


def test_the_list_of_models_has_each_name_once(served: Served) -> None:
    names = [card["id"] for card in served.client.get("/v1/models").json()["data"]]
    assert names == ["served", "stock", "alpha", "auto", "base", *(n for n in served.pool.names if n != "alpha")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hilora": {"method": "hilroa"}}, "Did you mean 'hilora'?"),
        ({"hilora": {"method": "fusion"}}, "Unknown method 'fusion'"),
        ({"hilora": {"metod": "hilora"}}, "Did you mean 'hilora.method'?"),
        ({"hilora": {"seed": "1"}}, "hilora.seed"),
        ({"hilora": {"method": "hilora-plus", "options": {"fallback": "abstain"}}}, "cannot"),
        ({"hilora": {"allow": ["nobody"]}}, "nobody"),
        ({"seed": 1, "hilora": {"seed": 2}}, "Give one of them"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages is a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "empty"),
        ({"model": "alpha", "hilora": {"method": "hilora"}}, "nothing is routed"),
    ],
)
def test_what_cannot_be_routed_is_refused_in_openais_form(served: Served, fields: Any, said: str) -> None:
    reply = served.ask(**{"model": "auto"} | fields)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert not served.came


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1], [2]], None, 5])
def test_auto_takes_one_text(served: Served, prompt: Any) -> None:
    assert served.ask(TEXT, model="auto", prompt=prompt).json()["error"]["param"] == "prompt"


def test_texts_of_a_chat_are_routed_on_and_images_are_let_through(served: Served) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [image, {"type": "text", "text": "abab abba"}]},
    ]
    assert served.ask(model="auto", messages=chat, seed=5).status_code == 200
    assert served.ask(model="auto", seed=5).status_code == 200
    (seen, first), (_, second) = served.came
    assert first == second
    assert seen["messages"] == chat


def test_a_method_that_is_no_sum_of_adapters_or_may_not_answer_is_refused() -> None:
    for name in DEFAULT_METHODS:
        check(get_method(name))
    for name in set(METHODS) - {*DEFAULT_METHODS, "base", "oracle", "ensemble", "lorauter"}:
        with pytest.raises(HiloraError):
            check(get_method(name))
    with pytest.raises(InputError, match="fallback"):
        check(get_method("hilora-plus", fallback="abstain"))


def test_methods_are_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert methods() == list(DEFAULT_METHODS)
    monkeypatch.setenv("HILORA_METHODS", "hilora, selection,")
    assert methods() == ["hilora", "selection"]


def sent(messages: list[Any], change: Callable[[dict[str, Any]], object]) -> list[Any]:
    """What comes of a server's messages."""
    found: list[Any] = []

    async def send(message: Any) -> None:
        found.append(message)

    async def go() -> None:
        added = Added(send, {"X-More": "1"}, change)
        for message in messages:
            await added(message)

    asyncio.run(go())
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream; charset=utf-8"])
def test_an_answer_is_changed_however_it_is_cut(size: int, kind: str) -> None:
    body = b'{"a": 1}' if kind.endswith("json") else b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n'
    cuts = [body[at : at + size] for at in range(0, len(body), size)]
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]}
    bodies = [
        {"type": "http.response.body", "body": cut, "more_body": number < len(cuts) - 1}
        for number, cut in enumerate(cuts)
    ]
    first, *rest = sent([start, *bodies], lambda found: found.update(c=3))
    assert (b"x-more", b"1") in first["headers"]
    whole = b"".join(message["body"] for message in rest)
    assert whole == body.replace(b'{"a": 1}', b'{"a":1,"c":3}')
    assert [message["more_body"] for message in rest][-1] is False


def test_errors_and_other_answers_are_sent_on_as_they_are() -> None:
    for status, kind in ((400, b"application/json"), (200, b"text/plain")):
        start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
        body = {"type": "http.response.body", "body": b"{}"}
        assert sent([start, body], lambda found: found.update(c=3))[1]["body"] == b"{}"


def test_a_route_is_told_without_an_answer(served: Served) -> None:
    asked = {"input": "abab abba", "seed": 3}
    there, served.hall.chooser = served.hall.chooser, None
    early = served.client.post("/v1/route", json=asked)
    assert (early.status_code, early.json()["error"]["code"]) == (503, "starting")
    served.hall.chooser = there
    told = served.client.post("/v1/route", json=asked)
    assert told.status_code == 200
    (wanted,) = route(Planner(served.pool, get_method("hilora"), served.embedder), ["abab abba"], seed=3)
    assert [each["name"] for each in told.json()["hilora"]["adapters"]] == [c.name for c in wanted.choices]
    assert told.headers["x-hilora-seed"] == "3"
    assert served.client.post("/v1/route", json={"input": " "}).status_code == 400
    assert not served.came
