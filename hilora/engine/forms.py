"""The forms in which a batch's deltas are worked out: the same sums, in the order that costs least.

For sites that read one input x (q, k and v of a layer):

    stacked     z = down @ x.T for every ROC of the batch, whoever uses it; each site adds (gated z).T @ up.T
    gathered    each row's own ROCs are copied together once, then each row is multiplied with its own only:
                for many tokens in each row
    joined      one token in each row: one product with the `up` of all sites, block by block on the diagonal, and
                for few tokens in fp32, since a CPU's matrix units take longer to start than such a product

However z was made, only each row's own ROCs are compared: they are picked out of z and put back.
`benchmarks/forms.py` times the forms.

On a GPU what counts is how many operations are launched: there all is stacked, z token by token in memory, and gates
are one operation where they can be (`fused`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.engine.attach import tokens_per_row
from hilora.engine.bound import Bound
from hilora.engine.even import Even, add_delta
from hilora.engine.fused import FusedTopRocs
from hilora.engine.stacked import Stacked

Add = Callable[[Tensor], Tensor]
"""A site's output (..., out) -> the same with the site's delta."""

GATHER = 256
"""Tokens of a row, times ROCs spared for each one used, from which gathering is worth its copies: it loses at 110 and
gains at 430 (`benchmarks/forms.py`)."""
SMALL = 512
"""Rows times ROCs up to which products of one token a row are made in fp32 on a CPU."""
Step = Callable[[Tensor, Even], Tensor]
"""z in the last columns of (batch, width), tokens -> the deltas of all sites side by side (batch, out)."""


class Forms:
    """The deltas of sites that read one input, under a batch's plan.

    Args:
        stacked: the sites' ROCs.
        bound: the plan and the gate.
    """

    def __init__(self, stacked: Stacked, bound: Bound) -> None:
        self.stack, self.bound, self.sites = stacked, bound, stacked.sites
        self.plan, self.gate, self.rocs = bound.plan, bound.gate, stacked.rocs
        self.lengths, self.widths = stacked.lengths, stacked.widths
        self.is_direct = stacked.rocs.down.is_cuda or isinstance(bound.gate, FusedTopRocs)
        self.own = None if self.is_direct else bound.own(stacked)

    def __call__(self, x: Tensor) -> list[Add]:
        """What to add at each site, given what the sites read: (..., in), row by row.

        Raises:
            ModelError: its tokens are of another batch.
        """
        each, count = self.each(x), len(self.rocs.owner)
        if torch.is_grad_enabled() or self.is_direct:
            return self.stacked(x)
        if each == 1:
            return self.joined(x)
        if self.own is not None and each * (count / len(self.own.index) - 1) >= GATHER:
            return self.gathered(x)
        return self.stacked(x)

    def each(self, x: Tensor) -> int:
        """Tokens of each row, given what the sites read.

        Raises:
            ModelError: its tokens are of another batch.
        """
        return tokens_per_row(x.numel() // x.shape[-1], self.plan, self.sites[0])

    def stacked(self, x: Tensor) -> list[Add]:
        """The deltas by the stacks of all ROCs."""
        tokens, down = self._tokens(x), self.rocs.down
        projected = (tokens.x @ down.T).T if self.is_direct else down @ tokens.x.T
        z = self._gated(projected, tokens).split(self.lengths)
        return [partial(_add_stacked, z=part, up=site.up) for part, site in zip(z, self.sites, strict=True)]

    def joined(self, x: Tensor) -> list[Add]:
        """The deltas of one token in each row, of all sites in one product."""
        tokens, (down, _) = self._tokens(x), self.stack.typed(self._dtype_kept)
        delta = self._step(torch.mm(tokens.x.to(down.dtype), down.t()), tokens).view(*x.shape[:-1], -1)
        return [partial(_add_part, part=part) for part in delta.split(self.widths, dim=-1)]

    def step(self, width: int) -> Step:
        """Bind what makes the deltas of one token in each row.

        Args:
            width: columns of what it gets, (batch, width); its last ones are z, token by token.
        """
        dtype, batch, count = self._dtype_one, len(self.plan.scale), len(self.rocs.owner)
        kept = self._dtype_kept
        _, up = self.stack.typed(kept)
        if self.own is None or self.plan.whole:
            gated = self._bind(dtype)
            return lambda made, tokens: up(gated(made[:, width - count :].t(), tokens).t().to(kept))
        own = self.own
        gated = self.bound.gated_own(own, dtype)

        def places() -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.arange(batch, device=own.index.device)
            with torch.inference_mode(False):  # so that it may be written in any mode
                room = self.rocs.down.new_zeros(batch, count, dtype=kept)  # what no row picks stays 0
            return own.index + (rows * width + width - count), own.index + rows * count, room

        lies, goes, room = self.bound.once(("step", self.stack.layout, width, kept), places)

        def one(made: Tensor, tokens: Tokens) -> Tensor:
            return up(room.put_(goes, gated(made.take(lies).to(dtype), tokens).to(kept)))

        return one

    def gate_rows(self, z: Float[Tensor, "token roc"], x: Tensor) -> tuple[Tensor, int]:
        """Gated z (token, roc), and tokens of each row, given z and what the sites read."""
        tokens = self._tokens(x)
        return self._gated(z.t(), tokens).t(), tokens.each

    def gathered(self, x: Tensor) -> list[Add]:
        """The deltas by each row's own ROCs."""
        (down, ups), own, tokens = self._rows, self.own, self._tokens(x)
        assert own is not None
        rows = tokens.x.unflatten(0, (-1, tokens.each))  # (batch, each, in)
        z = torch.bmm(down, rows.transpose(1, 2)).transpose(0, 1).flatten(1)  # (own, token)
        z = self._gated_own(z, tokens).unflatten(1, (-1, tokens.each)).permute(1, 2, 0)  # (batch, each, own)
        return [partial(_add_rows, z=part, up=up) for part, up in zip(z.split(own.lengths, dim=2), ups, strict=True)]

    def _tokens(self, x: Tensor) -> Even:
        flat = x.reshape(-1, x.shape[-1])
        return Even(len(flat) // len(self.plan.scale), flat.to(self.rocs.down.dtype))

    @cached_property
    def _step(self) -> Step:
        return self.step(len(self.rocs.owner))

    @cached_property
    def _on_cpu(self) -> bool:
        return self.rocs.down.device.type == "cpu"

    @cached_property
    def _dtype_one(self) -> torch.dtype:
        """In which the gate works for one token of each row: there the start of a bf16 product costs more than it."""
        dtype = self.rocs.down.dtype
        return torch.promote_types(dtype, torch.float32) if self._on_cpu else dtype

    @cached_property
    def _dtype_kept(self) -> torch.dtype:
        """Of the products, for one token of each row."""
        is_small = self._on_cpu and len(self.plan.scale) * len(self.rocs.owner) <= SMALL
        return self._dtype_one if is_small else self.rocs.down.dtype

    @cached_property
    def _rows(self) -> tuple[Float[Tensor, "batch own in"], list[Tensor]]:
        """Copies of each row's own ROCs: `down`, and each site's `up` (batch, own, out)."""
        assert self.own is not None
        index, ups, start = self.own.index.T.split(self.own.lengths, dim=1), [], 0
        for site, lies in zip(self.sites, index, strict=True):
            ups.append(site.up.T.contiguous()[lies - start])
            start += len(site.owner)
        return self.rocs.down[self.own.index.T], ups

    @cached_property
    def _gated(self) -> Gated:
        """Gates in the dtype of the ROCs: many tokens."""
        return self._bind(self.rocs.down.dtype)

    @cached_property
    def _gated_own(self) -> Gated:
        """Gates for z of each row's own ROCs."""
        assert self.own is not None
        return self.bound.gated_own(self.own, self.rocs.down.dtype)

    def _bind(self, dtype: torch.dtype) -> Gated:
        """The gate for z (roc, token) of all ROCs; it works in a dtype where it may."""
        if not self.gate.joinable:
            return _in_turn([self.gate(site, self.plan) for site in self.sites], self.lengths, self.rocs.down.dtype)
        if self.own is None or self.plan.whole:  # then nothing is compared, and picking costs more than it spares
            return _cast(self.bound.gated(self.stack, dtype), dtype)
        return _picked(self._gated_own, self.own.index)


def _cast(gated: Gated, dtype: torch.dtype) -> Gated:
    """A gate that works in a dtype: z goes in and comes out in its own."""
    return lambda z, tokens: gated(z.to(dtype), tokens).to(z.dtype)


def _picked(gated: Gated, index: Int[Tensor, "own batch"]) -> Gated:
    """A gate for each row's own ROCs, made one for z (roc, token) of all: what no row picks is 0."""
    batch = index.shape[1]
    lies = (index * batch + torch.arange(batch, device=index.device)).flatten()  # in (roc, batch)

    def one(z: Tensor, tokens: Tokens) -> Tensor:
        rows = z.view(len(z) * batch, -1)  # (roc * batch, each)
        own = gated(rows.index_select(0, lies).view(len(index), -1), tokens)
        return torch.zeros_like(rows).index_copy(0, lies, own.view(len(lies), -1)).view_as(z)

    return one


def _in_turn(gates: Sequence[Gated], lengths: Sequence[int], dtype: torch.dtype) -> Gated:
    """Each site's own gate on its part of the joined projections, in the dtype of the ROCs."""
    if len(gates) == 1:
        return _cast(gates[0], dtype)

    def gated(z: Tensor, tokens: Tokens) -> Tensor:
        parts = zip(gates, z.split(list(lengths)), strict=True)
        return torch.cat([gate(part, tokens) for gate, part in parts])

    return _cast(gated, dtype)


def _add_stacked(output: Tensor, z: Float[Tensor, "roc token"], up: Tensor) -> Tensor:
    """output (..., out) + z.T @ up.T."""
    return add_delta(output.flatten(0, -2), z, up).view(output.shape)


def _add_part(output: Tensor, part: Tensor) -> Tensor:
    """output + part in place, in the output's dtype."""
    return output.add_(part)


def _add_rows(output: Tensor, z: Float[Tensor, "batch each own"], up: Tensor) -> Tensor:
    """output (..., out) + z @ up row by row; in the output's dtype, in place if that is theirs."""
    rows = output.view(*z.shape[:2], -1)
    if z.dtype != output.dtype:
        return output + torch.bmm(z, up).to(output.dtype).view(output.shape)
    return rows.baddbmm_(z, up).view(output.shape)
