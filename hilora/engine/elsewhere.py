"""Deltas of modules that accelerate runs on another device than what comes to them: an output layer that is the
embedding on the first device, behind a last layer on the second."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from hilora.engine.forms import Add, Forms


def is_sent(module: nn.Module) -> bool:
    """Whether what a module reads may come from another device, and is sent to its own inside of it."""
    return getattr(getattr(module, "_hf_hook", None), "execution_device", None) is not None


@cache
def sent(form: type[Forms]) -> type[Forms]:
    """A form for such modules."""

    class Sent(form):  # type: ignore[valid-type, misc]
        def __call__(self, x: Tensor) -> list[Add]:
            found: list[Add] = super().__call__(x.to(self.rocs.down.device))
            return found

    return Sent
