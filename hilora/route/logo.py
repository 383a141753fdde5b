"""LoGo, LoRA on the Go (Lee et al. 2025, arXiv 2511.07129): adapters are asked by one pass of the base over a prompt.

No samples: at one site, the query projection of the last block, adapter i's output for the prompt's last token is
looked at, and the k strongest are mixed at all sites, each by its share:

    o_i = B_i A_i h      s_i = |o_i|      or      s_i = 1 / (H(softmax(o_i)) + 1e-6)      "norm" or "entropy"
    w_i = s_i / sum_j s_j over the top k, k = 20          delta = sum_i w_i B_i A_i x

The authors' code reads h where it enters the block, before the block's norm (`reads="block"`); "site" is what the
projection itself reads, behind it. There the pass has adapters in it, of the prompt before; here it is the base's.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.errors import InputError, MismatchError, PoolError, UnknownNameError
from hilora.route.candidates import select, weigh
from hilora.route.router import Known, Query
from hilora.types import Factors, Route

SIGNALS = ("norm", "entropy")
READS = ("block", "site")
QUERIES = frozenset(
    ("q_proj", "q", "query", "wq", "q_lin", "qkv_proj", "query_key_value", "c_attn", "qkv", "Wqkv", "W_pack")
)
"""What query projections are called, alone or joined with keys and values."""
IN_LOG, IN_SHARE = 1e-8, 1e-6
"""What the authors' code adds inside the logarithm, and to an entropy before it divides."""

_log = logging.getLogger("hilora")


@runtime_checkable
class Factored(Protocol):
    """Adapters whose factors can be read: a pool."""

    entries: Any

    def factors(self, content: str) -> Factors:
        """Factors of the adapter with that hash."""


@dataclass
class Logo:
    """The k adapters that change a site most at the prompt's last token, weighted by how much.

    Args:
        k: adapters per row, or all allowed ones if there are fewer.
        signal: a name in `SIGNALS`.
        site: a module that adapters change; "" for the last block's query projection.
        reads: a name in `READS`.
    """

    k: int = 20
    signal: str = "norm"
    site: str = ""
    reads: str = "block"
    needs_embedding: bool = field(default=False, init=False)
    seen_above_: float | None = field(default=None, init=False)
    site_: str = field(init=False)
    factors_: list[tuple[Tensor, Tensor] | None] = field(init=False, repr=False)  # there, of each adapter

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of adapters to mix: got {self.k}, expected at least 1.")
        if self.signal not in SIGNALS:
            raise UnknownNameError("signal", self.signal, SIGNALS)
        if self.reads not in READS:
            raise UnknownNameError("reads", self.reads, READS)

    def fit(self, known: Known) -> Logo:
        """Read every adapter's factors, and keep those of one site; an adapter that cannot be read is never chosen.

        Raises:
            UnknownNameError: no adapter changes the site that was named.
        """
        assert isinstance(known, Factored)
        counts, kept = Counter[str](), list[Factors]()
        for entry in known.entries:  # of each only the site that it would be by itself: a pool may be large
            factors = _read(known, entry)
            counts.update(factors.keys())
            own = self.site or last_query(Counter(factors.keys()))
            kept.append({own: factors[own]} if own in factors else {})
        if self.site and self.site not in counts:
            raise UnknownNameError("site", self.site, counts)
        self.site_ = self.site or last_query(counts)
        unlike = {i for i, own in enumerate(kept) if own and self.site_ not in own}
        again = {i: _read(known, known.entries[i]) for i in sorted(unlike)}
        self.factors_ = [again.get(i, own).get(self.site_) for i, own in enumerate(kept)]
        return self

    def score(self, state: Float[Tensor, "batch in"]) -> Float[Tensor, "batch adapter"]:
        """How much each adapter adds to what was read, fp32, worked out in fp64; 0 for one without the site.

        Raises:
            MismatchError: the adapters read something of another width.
        """
        scores = torch.zeros(len(state), len(self.factors_))
        for place, own in enumerate(self.factors_):
            if own is None:
                continue
            down, up = own
            if down.shape[1] != state.shape[1]:
                raise MismatchError(
                    f"logo read {state.shape[1]} numbers at {block_of(self.site_)!r}; the adapters' site "
                    f"{self.site_!r} reads {down.shape[1]}. Choose reads=site, or another site."
                )
            output = state.double() @ down.double().T @ up.double().T  # (batch, out)
            scores[:, place] = signal_of(output, self.signal).float()
        return scores

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's k strongest allowed adapters, each by its share."""
        assert query.read is not None
        scores = self.score(query.read(self.site_ if self.reads == "site" else block_of(self.site_)))
        best = select(scores, torch.full((len(scores),), float(self.k)), allowed, uniform=True)
        return weigh(best.scores.log(), best.scores, best.ids, best.weights > 0)  # softmax of logarithms: shares


def signal_of(output: Float[Tensor, "batch out"], signal: str) -> Float[Tensor, " batch"]:
    """How strong an adapter's output is: its length, or one over the entropy of its softmax."""
    if signal == "norm":
        return output.square().sum(1).sqrt()
    share = torch.softmax(output, dim=1)
    entropy = -(share * (share + IN_LOG).log()).sum(1)
    return (entropy + IN_SHARE).reciprocal()


def last_query(counts: Counter[str]) -> str:
    """The last block's query projection among sites, or that block's first site where none is called so.

    What most adapters change comes first; a decoder's sites only where there are no others, since an encoder reads.

    Args:
        counts: how many adapters change each site; "" comes of none.
    """
    read = _but({site for site in counts if "decoder" not in site.split(".")}, counts)
    queries = _but({site for site in read if site.rsplit(".", 1)[-1] in QUERIES}, read)
    most = max((counts[site] for site in queries), default=0)
    often = sorted(site for site in queries if counts[site] == most)
    return max(often, key=_place, default="")


def block_of(site: str) -> str:
    """The module that a site's block is: its name up to its last number; the site itself where it has none."""
    found = re.match(r".*\.\d+(?=\.)", site)
    return found[0] if found else site


def _read(known: Factored, entry: Any) -> Factors:
    try:
        return known.factors(entry.hash)
    except PoolError as error:
        _log.warning("Adapter %s is left out of what logo chooses from: %s", entry.name, error)
        return {}


def _but(some: set[str], others: Iterable[str]) -> set[str]:
    return some or set(others)


def _place(site: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.)", site)))
