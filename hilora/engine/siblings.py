"""Modules that read the same input (q, k and v of a layer): what they share is worked out when the first reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hilora.engine.bound import Bound
from hilora.engine.even import Even
from hilora.engine.forms import Forms
from hilora.engine.packed import Packed
from hilora.engine.stacked import Stacked

T = TypeVar("T")


class Shared(Generic[T]):
    """Something for each of several modules, made for all of them at once.

    Modules that turn out to read different inputs (cross-attention) are served one by one from then on.

    Args:
        work: input (..., in) -> something for each module.
        alone: place of a module -> input -> something for it.
        count: of modules.
    """

    def __init__(self, work: Callable[[Tensor], list[T]], alone: Callable[[int], Callable[[Tensor], T]], count: int):
        self.work, self.alone, self.count = work, alone, count
        self.apart: list[Callable[[Tensor], T]] = []
        self.input: Tensor | None = None
        self.found: list[T] = []
        self.left = 0  # modules that have not read this input yet

    def __call__(self, x: Tensor, place: int) -> T:
        """What the module at a place gets for its input."""
        if self.apart:
            return self.apart[place](x)
        if x is not self.input:
            if self.input is not None:  # a module read something else before this input was used by all
                self.forget()
                self.apart = [self.alone(each) for each in range(self.count)]
                return self.apart[place](x)
            self.found = self.work(x)
            self.input, self.left = x, self.count
        made = self.found[place]
        self.left -= 1
        if not self.left:
            self.forget()
        return made

    def forget(self) -> None:
        """Drop what was made: all modules have read it, or a forward pass broke off."""
        self.input, self.found = None, []


@contextmanager
def instead(modules: Sequence[nn.Module], shared: Shared[Tensor]) -> Iterator[None]:
    """While the context is open, modules give what they share instead of what they work out themselves."""
    shared.forget()
    for place, module in enumerate(modules):
        module.forward = partial(shared, place=place)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


class Beside:
    """Sites whose deltas are added to what their modules give.

    Args:
        modules: of the sites, which may read the same input.
        stacked: the sites' ROCs.
        bound: the plan and the gate.
        form: `Forms`, for tokens that lie as they do there.
    """

    def __init__(
        self, modules: Sequence[nn.Module], stacked: Stacked, bound: Bound, form: type[Forms] = Forms
    ) -> None:
        self.modules = modules

        def alone(place: int) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
            forms = form(Stacked(stacked.sites[place : place + 1]), bound)
            return lambda x: forms(x)[0]

        self.shared = Shared(form(stacked, bound), alone, len(stacked.sites))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Add them while the context is open."""

        def hook(place: int) -> Any:
            return lambda module, inputs, output: self.shared(inputs[0], place)(output)

        self.shared.forget()
        handles = [module.register_forward_hook(hook(place)) for place, module in enumerate(self.modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Together:
    """Modules of a block of weights, some of them sites: for one token in each row, one product makes all outputs.

    Args:
        pack: the block.
        stacked: the ROCs of those of its modules that adapters change, in the block's order.
        bound: the plan and the gate.
        form: `Forms`, for tokens that lie as they do there.
    """

    def __init__(self, pack: Packed, stacked: Stacked, bound: Bound, form: type[Forms] = Forms) -> None:
        self.pack, self.stack, self.bound, self.form = pack, stacked, bound, form
        self.forms = form(stacked, bound)
        self.places = [pack.names.index(site.name) for site in stacked.sites]
        count = len(self.forms.rocs.owner)
        self.lodged = count if count <= pack.spare else 0
        self.step = self.forms.step(sum(pack.widths) + count if self.lodged else count)
        self.spans = _spans(pack.widths, self.places)
        self.shared = Shared(self.outputs, self._alone, len(pack.names))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Work out the modules so while the context is open."""
        if self.lodged:
            self.pack.lodge(self.forms.rocs.down, self.stack.version)
        with instead(self.pack.modules, self.shared):
            yield

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The output (..., out) of each module for its input (..., in), deltas added.

        Raises:
            ModelError: its tokens are of another batch.
        """
        each = self.forms.each(x)
        if self.forms.is_direct and not torch.is_grad_enabled():
            return self._directly(x)
        if each == 1 and not torch.is_grad_enabled():
            return self._one(x)
        outputs = [_linear(module, x) for module in self.pack.modules]
        for place, add in zip(self.places, self.forms(x), strict=True):
            outputs[place] = add(outputs[place])
        return outputs

    def _directly(self, x: Tensor) -> list[Tensor]:
        """The same in as few operations as can be."""
        made, flat = self.pack.project(x, self.lodged), x.reshape(-1, x.shape[-1])
        rows, outputs = made.view(len(flat), -1), sum(self.pack.widths)
        z = rows[:, outputs:] if self.lodged else flat @ self.forms.rocs.down.t()
        gated, each = self.forms.gate_rows(z, flat)
        if (whole := self.stack.whole) is not None and each == 1:
            for start, begin, width in self.spans:
                rows[:, start : start + width].addmm_(gated, whole[:, begin : begin + width])
        else:
            for place, part, site in zip(
                self.places, gated.split(self.stack.lengths, 1), self.stack.sites, strict=True
            ):
                start = sum(self.pack.widths[:place])
                rows[:, start : start + self.pack.widths[place]].addmm_(part, site.up.T)
        return list(made.split([*self.pack.widths, self.lodged], dim=-1))

    def _one(self, x: Tensor) -> list[Tensor]:
        """The same for one token in each row."""
        tokens, made = Even(1, x.reshape(-1, x.shape[-1])), self.pack.project(x, self.lodged)
        rows = made.view(len(tokens.x), -1)
        delta = self.step(rows if self.lodged else tokens.x @ self.forms.rocs.down.t(), tokens)
        for start, begin, width in self.spans:
            rows[:, start : start + width].add_(delta[:, begin : begin + width])
        return list(made.split([*self.pack.widths, self.lodged], dim=-1))

    def _alone(self, place: int) -> Callable[[Tensor], Tensor]:
        """The output of one module, whatever the others read."""
        module = self.pack.modules[place]
        if place not in self.places:
            return partial(_linear, module)
        forms = self.form(Stacked([self.stack.sites[self.places.index(place)]]), self.bound)
        return lambda x: forms(x)[0](_linear(module, x))


def _spans(widths: Sequence[int], places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Where deltas that lie side by side go: (column of the block, column of the deltas, width), runs in one."""
    spans: list[tuple[int, int, int]] = []
    begin = 0
    for place in places:
        start, width = sum(widths[:place]), widths[place]
        if spans and spans[-1][0] + spans[-1][2] == start:
            spans[-1] = (*spans[-1][:2], spans[-1][2] + width)
        else:
            spans.append((start, begin, width))
        begin += width
    return spans


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, module.weight, module.bias)
