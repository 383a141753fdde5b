"""The one equation.

    delta = ((x @ down.T) * gate) @ up.T        x (token, in)  gate (token, roc)  delta (token, out)

Every method of the token level and of the sequence level is a way to fill `gate`: one short file each in this folder.
Cost per token is in * R + R * out for the R ROCs that the batch uses; no per-adapter output is ever made.

Gates and projections lie transposed in memory, (roc, token): ROCs of one adapter are then compared along long runs of
tokens, several times faster than 8 neighbours at a time. `hilora.engine` works the same sums out in the order that
costs least; each of its forms is tested against `plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from hilora.types import Plan, Rocs, Site

Spread = Callable[[Tensor], Tensor]
"""What each row has, (..., batch) -> what each of its tokens has, (..., token)."""


class Tokens:
    """The tokens at a site, flat, padded and packed batches alike; called, it is a `Spread`.

    Args:
        x: (token, in) what the site reads.
        row: (token,) which row of the batch each token is of.
    """

    def __init__(self, x: Float[Tensor, "token in"], row: Int[Tensor, " token"]) -> None:
        self.x, self.row = x, row

    def __call__(self, of_rows: Tensor) -> Tensor:
        """(..., batch) -> (..., token)."""
        return of_rows[..., self.row]


Gated = Callable[[Tensor, Tokens], Tensor]
"""(z (roc, token), tokens) -> gate * z, of the same shape."""


@runtime_checkable
class Gate(Protocol):
    """A composer: how much of each ROC's projection a token gets.

    Attributes:
        joinable: whether adapters are gated each by itself, at each site by itself, so that the engine may gate the
            ROCs of several sites, or each row's own, in one go. Such a gate reads no `down`, and works in its dtype.
    """

    joinable: ClassVar[bool]

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind the gate to ROCs (of one site, a `Site`, unless joinable) and to what each row may use.

        What depends on these alone is worked out here, once a batch. Where a row has ROCs of its own, `rocs.size` is
        (roc, batch) and `plan.ranks` (batch, adapter).
        """


def plain(
    x: Float[Tensor, "token in"], row: Int[Tensor, " token"], plan: Plan, gate: Gate, site: Site
) -> Float[Tensor, "token out"]:
    """What a site adds to the base model's output for what it reads; tokens may lie in any order of their rows."""
    z = site.down @ x.T  # (roc, token)
    gated = gate(site, plan)(z, Tokens(x, row))  # gate * z
    return gated.T @ site.up.T
