"""A plan at work in a model in the forms that cost least: adapters are laid out once, and plans bound to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import nn

from hilora.base.rows import Order, orders, plan_at, sites_of
from hilora.compose.delta import Gate
from hilora.engine.attach import attach, carrying, plan_on
from hilora.engine.batching import ServeRows
from hilora.engine.bound import Bound
from hilora.engine.elsewhere import is_sent, sent
from hilora.engine.forms import Forms
from hilora.engine.packed import Packed, pack_weights
from hilora.engine.siblings import Beside, Together
from hilora.engine.stacked import Stacked
from hilora.engine.steps import StepForms
from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Site


class Attachment:
    """Adapters at the sites of a model, laid out once for any plans of theirs.

    Inputs may be (batch, seq, in), the same flattened, or (seq, batch, in), as `base.rows` finds out; a batch that is
    a multiple of a plan's rows (beams, several answers per prompt) follows the prompts in their order.

    Args:
        model: that the sites are of.
        sites: by name, adapters stacked.
        packs: blocks of the model's weights that hold sites; their modules are worked out by one product.

    Attributes:
        sites: the same, as the memory that is worked with; `wrote` is told of what is written there.
        groups: sites that may read the same input, and the block of weights that they are in, if they are in one.

    Raises:
        ModelError: the model lacks a site.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], packs: Sequence[Packed] = ()) -> None:
        self.model, self._read = model, sites_of(model, sites)
        packs = [pack for pack in packs if len({orders(model).get(name) for name in pack.names}) == 1]
        packed = {name for pack in packs for name in pack.names}
        self.groups: list[tuple[Stacked, Packed | None]] = [
            (Stacked([sites[name] for name in pack.names if name in sites]), pack) for pack in packs
        ]
        for order in Order:
            alike = {
                name: site for name, site in sites.items() if name not in packed and self._read[name][1] is order
            }
            self.groups += [(Stacked([sites[name] for name in names]), None) for names in _groups(alike)]
        self.sites = {site.name: site for stacked, _ in self.groups for site in stacked.sites}

    @property
    def intact(self) -> bool:
        """Whether the modules are still those of the model, and packed weights where they were."""
        named = dict(self.model.named_modules())
        same = all(named.get(name) is module for name, (module, _) in self._read.items())
        return same and all(pack.intact(named) for _, pack in self.groups if pack is not None)

    def wrote(self) -> None:
        """Something was written into the sites' tensors."""
        for stacked, _ in self.groups:
            stacked.wrote()

    def bind(self, plan: Plan, gate: Gate) -> Callable[[], AbstractContextManager[None]]:
        """What opens a context in which the deltas of a plan are added to every site's output.

        Raises:
            InputError: rows with different plans at a site that cannot tell them apart.
            ModelError: when opened: the model already carries a plan.
        """
        bounds: dict[tuple[torch.device, bool], Bound] = {}
        groups: list[Beside | Together] = []
        for stacked, pack in self.groups:
            name, where = stacked.sites[0].name, stacked.rocs.down.device
            order = self._read[name][1]
            if (key := (where, order is Order.MIXED)) not in bounds:
                bounds[key] = Bound(plan_at(name, plan_on(plan, where), order), gate)
            form = StepForms if order is Order.STEPS else Forms
            if pack is None:
                modules = [self._read[site.name][0] for site in stacked.sites]
                form = sent(form) if any(map(is_sent, modules)) else form
                groups.append(Beside(modules, stacked, bounds[key], form))
            else:
                groups.append(Together(pack, stacked, bounds[key], form))

        @contextmanager
        def opened() -> Iterator[None]:
            with carrying(self.model), ExitStack() as stack:
                for group in groups:
                    stack.enter_context(group())
                yield

        return opened


def _groups(sites: Mapping[str, Site]) -> list[list[str]]:
    """Sites that may read the same input, in groups: one parent, one width, one device."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, site in sites.items():
        down = site.down
        groups.setdefault((name.rpartition(".")[0], down.shape[1], down.dtype, down.device), []).append(name)
    return list(groups.values())


class Fast:
    """Adapters at work in a model in the forms that cost least.

    Args:
        model: that the sites are of.
        sites: by name, adapters stacked.
        packed: whether weights of modules that read one input may be laid into one block.
        alone: whether those that read theirs alone may, too; on a GPU they may.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], packed: bool, alone: bool = False) -> None:
        alone = alone or any(site.down.is_cuda for site in sites.values())
        self.attachment = Attachment(model, sites, pack_weights(model, sites, alone) if packed else ())
        self.sites, self.wrote = self.attachment.sites, self.attachment.wrote

    @property
    def intact(self) -> bool:
        """Whether the model is still as it was."""
        return self.attachment.intact

    def bind(self, plan: Plan, gate: Gate) -> ServeRows:
        """Rows of a plan -> the model under their part of it."""

        @lru_cache(maxsize=1)  # the same rows again and again
        def bound(places: tuple[int, ...]) -> Callable[[], AbstractContextManager[None]]:
            return self.attachment.bind(plan.take(places), gate)

        return lambda places: bound(tuple(places))()


class Plain:
    """The same by the equation as it stands."""

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], packed: bool) -> None:
        self.model, self.sites, self.intact = model, dict(sites), True

    def wrote(self) -> None:
        """Something was written into the sites' tensors; nothing is kept of them."""

    def bind(self, plan: Plan, gate: Gate) -> ServeRows:
        """Rows of a plan -> the model under their part of it."""
        return lambda places: attach(self.model, self.sites, plan.take(places), gate)


FORMS: dict[str, type[Fast | Plain]] = {"fast": Fast, "plain": Plain}
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
