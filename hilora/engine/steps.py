"""Deltas where a module reads (seq, batch, in): step by step, not row by row."""

from __future__ import annotations

from torch import Tensor

from hilora.engine.forms import Add, Forms


class StepForms(Forms):
    """`Forms` for such sites: what they read and give is turned around, and back."""

    def __call__(self, x: Tensor) -> list[Add]:
        """What to add at each site, given what the sites read: (seq, batch, in).

        Raises:
            ModelError: its tokens are of another batch.
        """
        return [_turned(add) for add in super().__call__(x.transpose(0, 1))]


def _turned(add: Add) -> Add:
    return lambda output: add(output.transpose(0, 1)).transpose(0, 1).contiguous()
