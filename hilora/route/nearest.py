"""The best of very many adapters under a tied Gaussian, without a score for each in full.

With w the whitened prompt, m_i the whitened mean of adapter i and o_i what else counts for it, log-likelihoods differ
between adapters by

    s_i = w . m_i - |m_i|^2 / 2 + o_i.

Both searches find a few adapters by rough numbers and score those in fp64 (`route.scored`), so that a row's scores do
not depend on who else is in its batch or beside it in the pool, and equal ones keep the pool's order.

    Exact     rough: fp32 matrix product. What rounding could have pushed out is looked at again: always the best.
    Indexed   rough: 4-bit codes of the means (faiss), 32 or 64 bytes an adapter beside the means. The best are missed
              now and then: `benchmarks/selection.py` says how often.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from hilora.route.exact import Exact
from hilora.route.indexed import Indexed, need_faiss
from hilora.route.scored import Found

__all__ = ["INDEX_FROM", "SEARCHES", "Exact", "Indexed", "Nearest", "make_search", "need_faiss"]

INDEX_FROM = 2000
"""Adapters from which on an index pays."""


@runtime_checkable
class Nearest(Protocol):
    """A search for the best adapters."""

    def top(self, white: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]) -> Found:
        """The k best allowed adapters of each row (all, if there are fewer)."""
        ...


SEARCHES: dict[str, type[Exact] | type[Indexed]] = {"exact": Exact, "indexed": Indexed}


def make_search(
    name: str, means: Float[Tensor, "adapter dim"], offset: Float[Tensor, " adapter"] | None = None
) -> Nearest:
    """A search by its name; pools too small for an index are searched without one."""
    kind = SEARCHES[name]
    return Exact(means, offset) if len(means) < INDEX_FROM else kind(means, offset)
