"""What callers ask -> routes: whom each prompt may be routed to, and by which method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from hilora.base.prompts import query_text
from hilora.planner import Planner, Routed
from hilora.pool.view import PoolView
from hilora.serve.asked import AUTO, BASE, Ask
from hilora.serve.damages import Damages
from hilora.serve.faults import ForbiddenError, ServiceError
from hilora.serve.tenants import find, mask


@runtime_checkable
class Plans(Protocol):
    """What has a planner, as `engine.lanes.Lanes`."""

    @property
    def planner(self) -> Planner:
        """Routes."""
        ...


T = TypeVar("T")
W = TypeVar("W", bound=Plans)


def alike(each: Sequence[T], ask_of: Callable[[T], Ask]) -> list[list[T]]:
    """What can be routed together, in groups."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for one in each:
        ask = ask_of(one)
        way = ask.model == BASE, ask.model not in (AUTO, BASE), ask.method, tuple(sorted(ask.options.items()))
        groups[way].append(one)
    return list(groups.values())


def route(
    view: PoolView,
    asks: Sequence[Ask],
    methods: Sequence[str],
    damages: Damages,
    default: W,
    way: Callable[[str, Mapping[str, Any]], W],
) -> tuple[W, Routed]:
    """Route prompts that go one way (`alike`).

    Args:
        view: the pool.
        asks: the prompts.
        methods: that may be asked for, the default first.
        damages: knows adapters that nobody is routed to.
        default: serves the base model alone.
        way: what serves a method with its options.

    Raises:
        ServiceError: the method is not served; an adapter is missing, disabled, damaged.
        InputError: a prompt cannot be routed, or the method has no such option.
    """
    ask = asks[0]
    prompts = [each.prompt for each in asks]
    if ask.model == BASE:
        texts = [query_text(prompt) for prompt in prompts]
        return default, Routed(texts, None, default.planner.source, [""] * len(texts))
    if ask.model == AUTO:
        method = ask.method or methods[0]
        if method not in methods:
            raise ServiceError(
                f"The method {method!r} is not served here. Served: {', '.join(methods)}.", param="hilora.method"
            )
        found = way(method, ask.options)
        masks = torch.stack([mask(view, each.caller, each.allow) for each in asks])
        return found, found.planner.route(prompts, visible=masks & damages.whole(view))
    found = way("oracle", {})
    places = [find(view, each.caller, each.model) for each in asks]
    for place, each in zip(places, asks, strict=True):
        if not view.entries[place].enabled:
            raise ForbiddenError(f"The adapter {each.model!r} is disabled.")
        damages.refuse(view.entries[place], each.model)
    masks = torch.zeros(len(asks), len(view), dtype=torch.bool)
    masks[range(len(asks)), places] = True
    return found, found.planner.route(prompts, labels=[view.entries[place].name for place in places], visible=masks)
