"""The paths of OpenAI's API that the service answers."""

from __future__ import annotations

import email.message
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from starlette.responses import Response

from hilora.serve.asked import Ask, Caller, Desk
from hilora.serve.faults import ForbiddenError, MissingError, ServiceError
from hilora.serve.limits import Limits
from hilora.serve.openai.answered import GoneError, in_its_words, while_there, whole
from hilora.serve.openai.asking import chat_ask, completion_ask, look_ask, route_ask
from hilora.serve.openai.described import (
    CHAT_BODY,
    COMPLETION_BODY,
    ID_HEADER,
    LOOK_BODY,
    NAME_PATH,
    REFUSALS,
    ROUTE_BODY,
    answers,
)
from hilora.serve.openai.errors import Json
from hilora.serve.openai.forms import CHAT, TEXT, Form, Reply
from hilora.serve.openai.models import model_of, models_of
from hilora.serve.openai.reasons import fingerprint, headers_of, reasons_of, route_reply
from hilora.serve.openai.replies import ChatCompletion, LookReply, Model, ModelList, RouteReply, TextCompletion
from hilora.serve.openai.requests import ChatRequest, CompletionRequest, Generation, LookRequest, RouteRequest
from hilora.serve.openai.stream import Streamed

USE = "use"
"""The scope of all that is here."""
LEFT = 499
"""A status that nobody reads."""
NOT_OFFERED = ("/load_lora_adapter", "/unload_lora_adapter")
"""Paths of vLLM's."""


class MediaTypeError(ServiceError):
    """A body that is no JSON."""

    status = 415


def routes(
    desk: Desk,
    limits: Limits,
    who: Callable[..., Any],
    adding: str = "Upload it with POST /v1/adapters, or add it on the server with `hilora pool add`.",
) -> APIRouter:
    """The paths, to be included in an application.

    Args:
        desk: answers.
        limits: of a request.
        who: a dependency, `(Request) -> Caller`; raises an UnauthorizedError.
        adding: what clients of vLLM's paths for loading adapters are told to do instead.
    """
    bearer: Any = Depends(HTTPBearer(auto_error=False, description="A token of this server, as api_key"))
    router = APIRouter(prefix="/v1", dependencies=[bearer], responses=REFUSALS)
    as_json = [Depends(json_only)]
    known: Any = Depends(using(who))

    async def answer(request: Request, given: Generation, ask: Ask, form: Form) -> Response:
        explain = bool(given.hilora and given.hilora.explain)
        if given.stream:
            usage = bool(given.stream_options and given.stream_options.include_usage)
            return Streamed(desk, ask, form, explain=explain, usage=usage)
        try:
            answering, ended = await while_there(request.receive, whole(desk, ask))
        except GoneError:
            return Response(status_code=LEFT)
        reply = Reply(form, ask, answering.why, explain)
        return Json(reply.whole(ended), headers=headers_of(ask, answering.why))

    @router.post(
        "/chat/completions",
        summary="Answer a chat",
        tags=["answers"],
        dependencies=as_json,
        response_model=None,
        responses=answers(ChatCompletion, streamed=True),
    )
    async def chat(request: Request, caller: Caller = known, body: ChatRequest = CHAT_BODY) -> Response:
        """Answer a chat with the adapters that fit it, without a label that says which.

        Compatible with OpenAI's API: point a client's base_url at this server's /v1.
        """
        return await answer(request, body, chat_ask(body, caller, limits, desk.methods), CHAT)

    @router.post(
        "/completions",
        summary="Continue a text",
        tags=["answers"],
        dependencies=as_json,
        response_model=None,
        responses=answers(TextCompletion, streamed=True),
    )
    async def complete(
        request: Request, caller: Caller = known, body: CompletionRequest = COMPLETION_BODY
    ) -> Response:
        """Continue a text that goes to the model as it is, without a chat template."""
        return await answer(request, body, completion_ask(body, caller, limits, desk.methods), TEXT)

    @router.post(
        "/route",
        summary="Route a prompt",
        tags=["routing"],
        dependencies=as_json,
        response_model=None,
        responses=answers(RouteReply, streamed=False),
    )
    async def route(caller: Caller = known, body: RouteRequest = ROUTE_BODY) -> Response:
        """Say which adapters would answer a prompt, and why, without an answer.

        Takes what a chat takes, or a text. All reasons are told, unless hilora.explain is false.
        """
        ask = route_ask(body, caller, limits, desk.methods)
        with in_its_words(ask):
            why = await desk.route(ask)
        explain = not (body.hilora and body.hilora.explain is False)
        return Json(route_reply(ask, why, explain), headers=headers_of(ask, why))

    @router.post(
        "/activations",
        summary="Look at what tokens use",
        tags=["routing"],
        dependencies=as_json,
        response_model=None,
        responses=answers(LookReply, streamed=False),
    )
    async def look(request: Request, caller: Caller = known, body: LookRequest = LOOK_BODY) -> Response:
        """Say how much each token of a prompt, and of an answer to it, uses of each adapter.

        Takes what a route takes, and the answer; with the seed that it came with, ROCs are drawn as they were then.
        """
        ask = look_ask(body, caller, limits, desk.methods)
        try:
            with in_its_words(ask):
                why, seen = await while_there(request.receive, desk.look(ask))
        except GoneError:
            return Response(status_code=LEFT)
        explain = not (body.hilora and body.hilora.explain is False)
        reply: LookReply = {
            "object": "hilora.activations",
            "model": ask.model,
            "prompt_tokens": seen.num_prompt,
            "system_fingerprint": fingerprint(why),
            "tokens": list(seen.tokens),
            "adapters": list(seen.adapters),
            "rocs_used": [list(row) for row in seen.rocs_used],
            "share_added": [list(row) for row in seen.share_added],
            "hilora": reasons_of(ask, why, explain),
        }
        return Json(reply, headers=headers_of(ask, why))

    @router.get(
        "/models",
        summary="List what can be named as model",
        tags=["models"],
        response_model=None,
        responses={200: {"model": ModelList, "headers": ID_HEADER}},
    )
    async def models(caller: Caller = known) -> Response:
        """Routing ("auto"), the base model alone ("base"), and every adapter that you see."""
        return Json(models_of(desk, caller))

    @router.get(
        "/models/{name:path}",
        summary="Look at one of them",
        tags=["models"],
        response_model=None,
        responses={200: {"model": Model, "headers": ID_HEADER}},
    )
    async def model(caller: Caller = known, name: str = NAME_PATH) -> Response:
        """An adapter, by its name or by the hash of its content."""
        return Json(model_of(desk, caller, name))

    async def refuse_loading() -> Response:
        raise MissingError(f"The server loads no adapter from a path that a client names. {adding}", "unknown_url")

    for path in NOT_OFFERED:
        router.post(path, include_in_schema=False)(refuse_loading)
    return router


def using(who: Callable[..., Any]) -> Callable[..., Any]:
    """The dependency, for callers that may have prompts answered."""
    caller: Any = Depends(who)

    async def user(found: Caller = caller) -> Caller:
        return user_of(found)

    return user


def user_of(caller: Caller) -> Caller:
    """A caller that may have prompts answered.

    Raises:
        ForbiddenError: he may not.
    """
    if USE not in caller.scopes:
        raise ForbiddenError(
            f"The token is not for {USE!r}; it is for: {', '.join(sorted(caller.scopes)) or 'nothing'}."
        )
    return caller


async def json_only(request: Request) -> None:
    """Refuse bodies of other types.

    Raises:
        MediaTypeError: says which.
    """
    given = request.headers.get("content-type", "")
    message = email.message.Message()
    message["content-type"] = given
    if not given or message.get_content_type() != "application/json":
        raise MediaTypeError(
            f"The body is sent as {given or 'nothing'!r:.60}; send JSON, with Content-Type: application/json.",
            "unsupported_media_type",
        )
