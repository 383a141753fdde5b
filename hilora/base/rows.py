"""How the tokens that a linear module reads lie: found out by running the base model, not from a list of names.

Most modules read (batch, seq, in), or the same flattened. Some read (seq, batch, in); some read a part of the tokens
in an order of their own (experts), or what belongs to no row (positions). A batch of two rows is run twice, its
second row with other tokens: what changes at a module is that row's.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from hilora.base.modules import linear_shapes, modules_of
from hilora.errors import InputError
from hilora.types import Plan

CHANGED = 1e-3
"""Of a token's length, from which it counts as changed; those of a row that is the same do not, bit for bit."""
TOKENS = 8
"""Of each row: enough that experts do not get all of them by chance."""
BROKEN = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)
"""What models raise that do not take what others take."""


class Order(Enum):
    """How the tokens of a batch lie in what a module reads."""

    ROWS = "row by row"  # (batch, seq, in), or flattened
    STEPS = "step by step"  # (seq, batch, in)
    MIXED = "in an order of its own"  # no telling which row a token is of


_found: weakref.WeakKeyDictionary[nn.Module, dict[str, Order]] = weakref.WeakKeyDictionary()


def orders(model: nn.Module) -> dict[str, Order]:
    """Linear modules that do not read their tokens row by row, and how they read them; found once for each model.

    A module that the probe does not reach is taken for one like its namesakes in other layers, else like its
    neighbours. A model that cannot be run on token ids alone is taken to read row by row.
    """
    if model not in _found:
        try:
            _found[model] = _probe(model)
        except BROKEN:
            _found[model] = {}
    return _found[model]


def sites_of(model: nn.Module, sites: Iterable[str]) -> dict[str, tuple[nn.Module, Order]]:
    """A model's modules at these sites, and how each reads its tokens.

    Raises:
        ModelError: a site is not among the model's modules.
    """
    sites = list(sites)
    modules, found = modules_of(model, sites), orders(model)
    return {name: (modules[name], found.get(name, Order.ROWS)) for name in sites}


def plan_at(name: str, plan: Plan, order: Order) -> Plan:
    """The plan for what a module reads: where rows cannot be told apart, the one that all of them have.

    Raises:
        InputError: they cannot be told apart, and have different plans.
    """
    if order is not Order.MIXED or len(plan.scale) == 1:
        return plan
    if not alike(plan):
        raise InputError(
            f"Module {name!r} reads the batch's tokens {order.value}, so that rows with different adapters cannot "
            "share a batch on this base model. Run such rows one by one, or leave adapters of that module out."
        )
    return plan.take([0])


def alike(plan: Plan) -> bool:
    """Whether all rows have one and the same plan."""
    return all(bool((of_rows == of_rows[:1]).all()) for of_rows in (plan.weights, plan.rocs, plan.scale))


def rows_apart(model: nn.Module, sites: Iterable[str], plan: Plan) -> bool:
    """Whether a batch has to be run row by row: rows have different plans, and a site cannot tell them apart."""
    found = orders(model)
    return bool(found) and any(found.get(name) is Order.MIXED for name in sites) and not alike(plan)


def rows_first(hook: Callable[..., Tensor], order: Order) -> Callable[..., Tensor]:
    """A forward hook for rows that lie one after another, made one for a module's own order."""
    if order is not Order.STEPS:
        return hook

    def turned(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return hook(module, (inputs[0].transpose(0, 1),), output.transpose(0, 1)).transpose(0, 1).contiguous()

    return turned


def some_tokens(model: Any, count: int) -> list[int]:
    """Token ids of a model, none of them special; all different, if its vocabulary is large enough."""
    output, size = model.get_output_embeddings(), int(model.get_input_embeddings().weight.shape[0])
    if isinstance(output, nn.Linear):  # some models read more tokens than they write
        size = min(size, output.out_features)
    special: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        for name, value in vars(config or object).items():
            if name.endswith("_token_id"):
                special |= set(value if isinstance(value, list) else [value])
    step = next(step for step in (7, 5, 3, 1) if size % step)  # all ids are met once
    plain = [
        token for token in ((11 + step * i) % size for i in range(min(size, count + 64))) if token not in special
    ]
    plain = plain or [0]
    return [plain[i % len(plain)] for i in range(count)]


def _probe(model: Any) -> dict[str, Order]:
    names = list(linear_shapes(model))
    tokens = some_tokens(model, 3 * TOKENS)
    first, second, third = (tokens[start : start + TOKENS] for start in range(0, len(tokens), TOKENS))
    with in_eval(model), torch.no_grad():
        one, other = (_reads(model, names, [first, row]) for row in (second, third))
    seen: dict[str, set[Order]] = {}
    for name in one.keys() | other.keys():
        calls, again = one.get(name, []), other.get(name, [])
        if len(calls) == len(again):
            seen.setdefault(_namesake(name), set()).update(map(_order, calls, again))
        else:
            seen.setdefault(_namesake(name), set()).add(Order.MIXED)
    beside: dict[str, set[Order]] = {}
    for name, found in seen.items():
        beside.setdefault(name.rpartition(".")[0], set()).update(found)
    told = {name: seen.get(_namesake(name)) or beside.get(_namesake(name).rpartition(".")[0]) for name in names}
    return {name: _only(found) for name, found in told.items() if found and _only(found) is not Order.ROWS}


def _reads(model: Any, names: Iterable[str], rows: list[list[int]]) -> dict[str, list[Tensor]]:
    """What each of the modules reads in a batch, call by call."""
    found: dict[str, list[Tensor]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                found.setdefault(name, []).append(inputs[0].detach().clone())

        return hook

    ids = torch.tensor(rows, device=model.device)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        given |= {"decoder_input_ids": ids, "use_cache": False}  # with a cache some read the last token alone
    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(record(name)).remove)
        model(**given)
    return found


def _order(one: Tensor, other: Tensor) -> Order:
    """How tokens lie, from what a module reads (..., in) before and after the second of two rows has changed."""
    if one.shape != other.shape or one[..., 0].numel() < 2 * TOKENS:  # some of the tokens
        return Order.MIXED
    one, other = one.float(), other.float()
    changed = (one - other).norm(dim=-1) > CHANGED * one.norm(dim=-1)
    if changed.numel() % 2 == 0:
        halves = changed.reshape(2, -1)
        if halves[1].any() and not halves[0].any():
            return Order.ROWS
    if changed.dim() == 2 and changed.shape[1] == 2 and changed[:, 1].any() and not changed[:, 0].any():
        return Order.STEPS
    return Order.MIXED


def _only(found: set[Order]) -> Order:
    return next(iter(found)) if len(found) == 1 else Order.MIXED


def _namesake(name: str) -> str:
    """A module's name with its numbers left out: modules of the same name in other layers read alike."""
    return re.sub(r"\d+", "*", name)


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Without dropout while the context is open; every module is then in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
