"""A plan at work in a model in the forms that cost least: bound once, opened for each stage of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import nn

from hilora.base.rows import Order, orders, plan_at, sites_of
from hilora.compose.delta import Gate
from hilora.engine.attach import attach, carrying, plan_on
from hilora.engine.batching import ServeRows
from hilora.engine.forms import Forms
from hilora.engine.packed import Packed, pack_weights
from hilora.engine.siblings import Beside, Together
from hilora.engine.steps import StepForms
from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Site


class Attachment:
    """The deltas of a plan at the sites of a model, worked out once; as often as it is opened they are added.

    Inputs may be (batch, seq, in), the same flattened, or (seq, batch, in), as `base.rows` finds out; a batch that is
    a multiple of the plan's rows (beams, several answers per prompt) follows the prompts in their order.

    Args:
        model: that the sites are of.
        sites: by name, the batch's adapters stacked.
        plan: of the batch.
        gate: the composer.
        packs: blocks of the model's weights that hold sites; their modules are worked out by one product.

    Raises:
        ModelError: the model lacks a site; when opened: it already carries a plan.
        InputError: rows with different plans at a site that cannot tell them apart.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        plan: Plan,
        gate: Gate,
        packs: Sequence[Packed] = (),
    ) -> None:
        self.model, read = model, sites_of(model, sites)
        plans: dict[torch.device, Plan] = {}

        def bound(names: Sequence[str]) -> tuple[list[Site], Plan, Gate, type[Forms]]:
            first, where, order = names[0], sites[names[0]].up.device, read[names[0]][1]
            if where not in plans:
                plans[where] = plan_on(plan, where)
            form = StepForms if order is Order.STEPS else Forms
            return [sites[name] for name in names], plan_at(first, plans[where], order), gate, form

        packs = [pack for pack in packs if len({orders(model).get(name) for name in pack.names}) == 1]
        self.groups: list[Beside | Together] = [
            Together(pack, *bound([name for name in pack.names if name in sites])) for pack in packs
        ]
        packed = {name for pack in packs for name in pack.names}
        for order in Order:
            alike = {name: site for name, site in sites.items() if name not in packed and read[name][1] is order}
            for names in _groups(alike):
                self.groups.append(Beside([read[name][0] for name in names], *bound(names)))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Add the deltas to every site's output while the context is open."""
        with carrying(self.model), ExitStack() as stack:
            for group in self.groups:
                stack.enter_context(group())
            yield


def _groups(sites: Mapping[str, Site]) -> list[list[str]]:
    """Sites that may read the same input, in groups: one parent, one width, one device."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, site in sites.items():
        down = site.down
        groups.setdefault((name.rpartition(".")[0], down.shape[1], down.dtype, down.device), []).append(name)
    return list(groups.values())


def serve_fast(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate, packed: bool) -> ServeRows:
    """Rows of a plan -> the model under their part of it, in the forms that cost least."""
    packs = pack_weights(model, sites) if packed else ()

    @lru_cache(maxsize=1)  # stage after stage the same rows, until one ends
    def attachment(places: tuple[int, ...]) -> Attachment:
        return Attachment(model, sites, plan.take(places), gate, packs)

    return lambda places: attachment(tuple(places))()


def serve_plain(model: nn.Module, sites: Mapping[str, Site], plan: Plan, gate: Gate, packed: bool) -> ServeRows:
    """The same by the equation as it stands."""
    return lambda places: attach(model, sites, plan.take(places), gate)


FORMS: dict[str, Callable[[nn.Module, Mapping[str, Site], Plan, Gate, bool], ServeRows]] = {
    "fast": serve_fast,
    "plain": serve_plain,
}
"""How deltas are worked out, by name."""


def check_form(form: str, packed: bool) -> None:
    """Refuse a form that does not exist, or packed weights where none are used.

    Raises:
        InputError: what is wrong.
    """
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    if packed and form != "fast":
        raise InputError(
            f"packed=True is for form='fast'; the form {form!r} packs no weights. Leave one of them out."
        )
