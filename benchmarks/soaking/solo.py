"""Answers compared with those of a router of its own, over the version of the pool that the answer names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from same import finish

from hilora import HiLoRA
from hilora.base.prompts import encode_prompts
from hilora.engine.call import Call
from hilora.engine.heard import Told
from hilora.engine.joining import requests_of
from hilora.pool.view import PoolView
from soaking.crowd import Asked
from soaking.house import House


@dataclass(frozen=True)
class Want:
    """What a prompt is answered alone, and by which adapters."""

    text: str
    reason: str
    parts: tuple[tuple[str, int], ...]  # content hash, ROCs


class Solos:
    """Answers of prompts alone, each worked out once.

    Args:
        house: knows the versions of the pool.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.near = 0
        """Answers with another token where two were as likely, but for rounding."""
        self._wants: dict[Any, Want] = {}
        self._routers: dict[tuple[int, str], HiLoRA] = {}

    def wrong(self, asked: Asked) -> list[str]:
        """What is wrong with an answer; nothing, it should be."""
        view = self.house.views.get((asked.why["pool"], asked.why["epoch"]))
        if view is None:
            return [f"no such pool was ever served: {asked.why}"]
        hashes = {entry.name: entry.hash for entry in view.entries}
        told = [(part["name"], part["hash"], part["rocs"]) for part in asked.why["adapters"]]
        want = self._want(asked, view)
        if [(hashes.get(name), rocs) for name, _, rocs in told] != [*want.parts]:
            return [f"routed to {told}, alone to {want.parts}: {asked.given}"]
        if any(hashes[name] != content for name, content, _ in told):
            return [f"a name of another content: {told}"]
        if (asked.text, asked.reason) == (want.text, want.reason):
            return []
        if self.house.things.tolerance and self._gap(asked, view) <= self.house.things.tolerance:
            self.near += 1
            return []
        return [f"answered {asked.text!r} ({asked.reason}), alone {want.text!r} ({want.reason}): {asked.given}"]

    @property
    def count(self) -> int:
        """How many were worked out."""
        return len(self._wants)

    def _want(self, asked: Asked, view: PoolView) -> Want:
        pinned, by = self._way(asked)
        asks = asked.prompt, asked.given["max_tokens"], asked.given["seed"]
        if by == "base":
            key: Any = by, asks
        elif pinned:
            key = asked.why["adapters"][0]["hash"], asks
        else:
            key = asked.why["pool"], asked.why["epoch"], by, tuple(asked.given["hilora"].get("allow", ())), asks
        if key not in self._wants:
            self._wants[key] = self._alone(asked, view)
        return self._wants[key]

    def _way(self, asked: Asked) -> tuple[bool, str]:
        """Whether an adapter is named, and the method."""
        model = asked.given["model"]
        pinned = model not in ("auto", "base")
        return pinned, "base" if model == "base" else "oracle" if pinned else asked.given["hilora"]["method"]

    def _router(self, view: PoolView, method: str) -> HiLoRA:
        if (id(view), method) not in self._routers:
            if len(self._routers) > 64:  # answers are compared version by version
                self._routers.pop(next(iter(self._routers)))
            self._routers[id(view), method] = self.house.things.router(view, method)
        return self._routers[id(view), method]

    def _more(self, asked: Asked) -> dict[str, Any]:
        pinned, _ = self._way(asked)
        return (
            {"labels": [asked.why["adapters"][0]["name"]]}
            if pinned
            else {"allow": asked.given["hilora"].get("allow")}
        )

    def _alone(self, asked: Asked, view: PoolView) -> Want:
        _, method = self._way(asked)
        given = {"max_new_tokens": asked.given["max_tokens"], "seed": asked.given["seed"], "do_sample": False}
        prompt = self.house.things.asked(asked.prompt)
        (answer,) = self._router(view, method).generate([prompt], **given, **self._more(asked))
        hashes = {entry.name: entry.hash for entry in view.entries}
        parts = tuple((hashes[choice.name], choice.rocs) for choice in answer.choices)
        return Want(answer.text, answer.finish_reason, parts)

    def _gap(self, asked: Asked, view: PoolView) -> float:
        """How far the logits of the token that came otherwise are from the best, as the prompt alone has them.

        Which token it was the text says: the nearest of those with which the answer could have gone on so.
        """
        _, method = self._way(asked)
        router = self._router(view, method)
        prompt = self.house.things.asked(asked.prompt)
        routed = router.planner.route([prompt], **self._more(asked))
        (ids,) = encode_prompts([prompt], router.tokenizer)
        options = {"max_new_tokens": asked.given["max_tokens"], "do_sample": False}
        call = Call(routed, {0: list(ids)}, asked.given["seed"], (), options)
        ((_, _, (alone,)),) = requests_of(router.lanes, call, [0])
        finish(router, [alone], 1)
        tokens, ((_, _, (again,)),) = list(alone.new), requests_of(router.lanes, call, [0])
        again.pick = told = Told(tokens)  # type: ignore[assignment]
        finish(router, [again], 1)

        def goes_on(start: list[int]) -> bool:
            return asked.text.startswith(router.tokenizer.decode(start, skip_special_tokens=True).rstrip("\ufffd"))

        at = next((i for i in range(len(tokens)) if not goes_on(tokens[: i + 1])), len(tokens) - 1)
        near = [float("inf")]
        for place in range(at + 1):  # tokens that show nothing yet may have differed before
            logits = told.heard[place].flatten()
            for token in logits.topk(5).indices.tolist():
                if token != tokens[place] and goes_on([*tokens[:place], token]):
                    near.append(abs(float(logits[tokens[place]] - logits[token])))
        return min(near)
