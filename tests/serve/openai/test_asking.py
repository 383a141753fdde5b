"""What requests ask of the desk."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hilora.serve.asked import Ask, Caller
from hilora.serve.faults import ServiceError
from hilora.serve.limits import Limits
from hilora.serve.openai.asking import SEEDS, chat_ask, completion_ask, route_ask
from hilora.serve.openai.parameters import CHAT, COMPLETION, MESSAGE
from hilora.serve.openai.requests import ChatRequest, CompletionRequest, RouteRequest

USER = {"role": "user", "content": "Hello."}
METHODS = ("hilora", "hilora-plus")


def chat(**given: Any) -> Ask:
    return chat_ask(ChatRequest.model_validate({"messages": [USER]} | given), Caller(), Limits(), METHODS)


def complete(**given: Any) -> Ask:
    return completion_ask(CompletionRequest.model_validate({"prompt": "Hi"} | given), Caller(), Limits(), METHODS)


def route(**given: Any) -> Ask:
    return route_ask(RouteRequest.model_validate(given), Caller(), Limits(), METHODS)


def refused(call: Any, **given: Any) -> ServiceError:
    with pytest.raises(ServiceError) as found:
        call(**given)
    assert found.value.status == 400
    return found.value


def test_a_chat_asks_what_it_says() -> None:
    ask = chat(
        model="auto", n=3, stop="END", seed=7, max_completion_tokens=9, logprobs=True, top_logprobs=2, stream=True,
        hilora={"method": "hilora-plus", "alpha": 0.1, "options": {"k": 2, "fallback": "base"}, "allow": ["a"]},
    )  # fmt: skip
    assert ask == Ask(
        [USER], model="auto", method="hilora-plus", options={"alpha": 0.1, "k": 2, "fallback": "base"}, allow=["a"],
        max_new_tokens=9, stops=("END",), seed=7, answers=3, top_logprobs=2, follow=True,
    )  # fmt: skip


def test_a_completion_is_raw_and_short_unless_it_says_how_long() -> None:
    assert complete(seed=1) == Ask("Hi", raw=True, max_new_tokens=16, seed=1)
    ask = complete(prompt=["Ho"], max_tokens=3, logprobs=0)
    assert (ask.prompt, ask.max_new_tokens, ask.top_logprobs) == ("Ho", 3, 0)


def test_content_is_text_or_parts_and_developers_are_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {"type": "x"}}]
    ask = chat(messages=[{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}])
    assert ask.prompt == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "one\ntwo"}]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    error = refused(chat, messages=[USER, {"role": "user", "content": image}])
    assert (error.code, error.param) == ("unsupported_parameter", "messages[1].content[0].type")


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, {}),
        ({"temperature": None, "top_p": None}, {}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.5}, {"do_sample": False}),
        ({"temperature": 1e-9}, {"do_sample": False}),
        ({"top_p": 0}, {"do_sample": False}),
        ({"temperature": 1}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"do_sample": True, "temperature": 0.5, "top_p": 0.9}),
        ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
    ],
)
def test_sampling_is_the_models_own_unless_something_is_said(given: Any, sampling: Any) -> None:
    assert chat(**given).sampling == sampling


def test_a_seed_is_taken_from_either_place_or_drawn() -> None:
    assert chat(seed=3).seed == chat(hilora={"seed": 3}).seed == chat(seed=3, hilora={"seed": 3}).seed == 3
    assert chat(seed=-(2**63)).seed == -(2**63)
    assert refused(chat, seed=3, hilora={"seed": 4}).param == "hilora.seed"
    drawn = {chat().seed for _ in range(20)}
    assert len(drawn) > 1
    assert all(0 <= seed < SEEDS for seed in drawn)


def test_lengths_that_differ_are_refused() -> None:
    assert chat(max_tokens=4, max_completion_tokens=4).max_new_tokens == 4
    assert chat().max_new_tokens is None
    assert refused(chat, max_tokens=4, max_completion_tokens=5).param == "max_tokens"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 9}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 201}, "stop"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"hilora": {"allow": ["a"] * 1001}}, "hilora.allow"),
        ({"hilora": {"method": "hilorra"}}, "hilora.method"),
        ({"hilora": {"alpha": 0.1, "options": {"alpha": 0.2}}}, "hilora.alpha"),
        ({"model": "base", "hilora": {"method": "hilora"}}, "hilora.method"),
        ({"model": "sst2", "hilora": {"allow": ["sst2"]}}, "hilora.allow"),
    ],
)
def test_what_is_too_much_or_contradicts_itself_is_refused(given: Any, param: str) -> None:
    assert refused(chat, **given).param == param


@pytest.mark.parametrize(("call", "table"), [(chat, CHAT), (complete, COMPLETION)])
def test_what_is_lacking_is_accepted_where_it_changes_nothing(call: Any, table: Any) -> None:
    plain = call(seed=1)
    for name, lacking in table.items():
        for value in (None, *(lacking.neutral or ())):
            assert call(**{"seed": 1, name: value}) == plain
        if lacking.neutral is None:
            assert call(**{"seed": 1, name: {"any": "thing"}}) == plain
        else:
            error = refused(call, **{name: {"any": "thing"}})
            assert (error.code, error.param) == ("unsupported_parameter", name)
            assert name in str(error)
    assert refused(call, frequency_penalty=False).param == "frequency_penalty"
    assert call(seed=1, presence_penalty=0.0) == plain


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    said = {"role": "assistant", "content": "Hi."}
    neutral: dict[str, Any] = dict.fromkeys(MESSAGE)
    assert chat(messages=[USER, said | neutral, USER]).prompt == [USER, said, USER]
    error = refused(chat, messages=[USER, said | {"tool_calls": [{"id": "1"}]}])
    assert (error.code, error.param) == ("unsupported_parameter", "messages[1].tool_calls")


@pytest.mark.parametrize(
    ("given", "param", "near"),
    [
        ({"temprature": 1}, "temprature", "'temperature'"),
        ({"hilora": {"alow": ["a"]}}, "hilora.alow", "'hilora.allow'"),
        ({"messages": [USER | {"contents": ""}]}, "messages[0].contents", "'messages[0].content'"),
        (
            {"stream": True, "stream_options": {"include_usages": True}},
            "stream_options.include_usages",
            "include_usage",
        ),
    ],
)
def test_unknown_parameters_are_refused_with_the_nearest_known(given: Any, param: str, near: str) -> None:
    error = refused(chat, **given)
    assert (error.code, error.param) == ("unknown_parameter", param)
    assert near in str(error)


def test_token_ids_are_refused() -> None:
    for prompt in ([1, 2], [[1, 2]]):
        assert refused(complete, prompt=prompt).code == "unsupported_parameter"


def test_one_prompt_is_routed_in_the_form_that_it_has() -> None:
    assert route(input="Hi", seed=1) == Ask("Hi", seed=1)
    assert route(prompt="Hi", seed=1) == Ask("Hi", seed=1, raw=True)
    assert route(messages=[USER], seed=1, max_tokens=3) == Ask([USER], seed=1, max_new_tokens=3)
    assert refused(route).param == "messages"
    assert refused(route, prompt="Hi", input="Ho").param == "input"


@pytest.mark.parametrize(
    "given",
    [
        {"n": "2"},
        {"n": True},
        {"n": 0},
        {"temperature": float("nan")},
        {"temperature": 2.1},
        {"seed": 2**63},
        {"stream": "yes"},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        {"hilora": {"options": {"k": [1]}}},
        {"hilora": {"options": {"K!": 1}}},
        {"hilora": {"options": {"k": float("inf")}}},
        {"hilora": {"options": {f"k{i}": 1 for i in range(17)}}},
        {"hilora": []},
    ],
)
def test_values_of_another_type_or_out_of_bounds_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        chat(**given)
