"""Linear modules that read one input, their weights one after another in one block of memory.

The modules keep their parameters, which become views of the block: no value changes and nothing is kept twice. While
adapters are attached, one product then makes the outputs of all of them and the projections of a batch's ROCs, whose
`down` is copied into spare rows at the block's end.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hilora.base.modules import is_plain

PACKS = (("q_proj", "v_proj", "k_proj"), ("gate_proj", "up_proj"))
"""Modules of one parent that read the same input (where they turn out not to, each is worked out by itself); those
that adapters most often change lie side by side."""
ALONE = (("o_proj",), ("down_proj",))
"""Modules that are a block by themselves where launches are dear: one product makes the projections, too."""
SPARE = 512
"""Rows for ROCs at the end of each block."""


@dataclass(eq=False)
class Packed:
    """Modules whose weights lie in one block.

    Attributes:
        names, modules: in the order of their rows.
        weight: (out + SPARE, in).
        bias: (out + SPARE,), 0 at the spare rows; None if no module has one.
        widths: rows of each module.
        tenant: whose ROCs lie in the spare rows.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Linear, ...]
    weight: Float[Tensor, "row in"]
    bias: Float[Tensor, " row"] | None
    widths: list[int]
    tenant: object = None

    @property
    def spare(self) -> int:
        """Rows for ROCs."""
        return len(self.weight) - sum(self.widths)

    def intact(self, named: Mapping[str, nn.Module]) -> bool:
        """Whether the modules are still those of a model, and their weights still here: they may have been moved."""
        starts = [part.data_ptr() for part in self.weight.split([*self.widths, self.spare])]
        return all(
            named.get(name) is module and module.weight.data_ptr() == start and "forward" not in vars(module)
            for name, module, start in zip(self.names, self.modules, starts, strict=False)
        )

    def lodge(self, down: Float[Tensor, "roc in"], tenant: object) -> None:
        """Put ROCs into the spare rows, unless they lie there."""
        if self.tenant is not tenant:
            self.tenant = None
            self.weight[sum(self.widths) :][: len(down)] = down
            self.tenant = tenant

    def project(self, x: Float[Tensor, "*batch in"], rocs: int) -> Float[Tensor, "*batch row"]:
        """Outputs of the modules side by side, then z of the ROCs lodged here."""
        rows = sum(self.widths) + rocs
        return nn.functional.linear(x, self.weight[:rows], None if self.bias is None else self.bias[:rows])


_blocks: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Packed]] = weakref.WeakKeyDictionary()


def pack_weights(model: nn.Module, sites: Iterable[str], alone: bool = False) -> list[Packed]:
    """The blocks of a model that hold any of these modules, by name.

    A block is made when one of its modules is first named, and again where weights have been moved since. Quantised,
    offloaded and wrapped modules stay as they are. With `alone`, those of `ALONE` are blocks, too.
    """
    ends = (*PACKS, *ALONE) if alone else PACKS
    made, named, found = _blocks.setdefault(model, {}), dict(model.named_modules()), []
    for names in dict.fromkeys(filter(None, (_pack_of(site, ends) for site in sites))):
        pack = made.get(names)
        if pack is None or not pack.intact(named):
            modules = [module for name in names if isinstance(module := named.get(name), nn.Linear)]
            if len(modules) < len(names) or not _packable(modules):
                continue
            pack = made[names] = _pack(names, modules)
        found.append(pack)
    return found


def _pack_of(site: str, packs: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Names of all modules that share a site's input, if it is one of `packs`."""
    parent, dot, own = site.rpartition(".")
    return next((tuple(parent + dot + end for end in ends) for ends in packs if own in ends), None)


def _packable(modules: Sequence[nn.Linear]) -> bool:
    """Plain linear modules of one width, dtype and device, that nobody has changed."""
    weights = [module.weight for module in modules]
    return (
        all(type(module) is nn.Linear and "forward" not in vars(module) for module in modules)
        and all(map(is_plain, weights))
        and len({(weight.shape[1], weight.dtype, weight.device) for weight in weights}) == 1
        and len({weight.data_ptr() for weight in weights}) == len(weights)
        and not weights[0].is_meta
    )


@torch.inference_mode(False)  # so that the model may still be trained
@torch.no_grad()
def _pack(names: tuple[str, ...], modules: Sequence[nn.Linear]) -> Packed:
    """One block for these modules; their parameters become views of it."""
    widths, like = [module.out_features for module in modules], modules[0].weight
    weight, bias = like.new_zeros(sum(widths) + SPARE, like.shape[1]), None
    if any(module.bias is not None for module in modules):
        bias = like.new_zeros(len(weight))
    start = 0
    for module, width in zip(modules, widths, strict=True):
        rows = slice(start, start + width)
        weight[rows] = module.weight
        module.weight.data = weight[rows]
        if bias is not None and module.bias is not None:
            bias[rows] = module.bias
            module.bias.data = bias[rows]
        start += width
    return Packed(names, tuple(modules), weight, bias, widths)
