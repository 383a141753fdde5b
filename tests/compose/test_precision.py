"""Gates in the precision of a site: they answer in its dtype, and weigh adapters by what fp64 gives, nearly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hilora.compose.arrow import Arrow
from hilora.compose.delta import Gate, Tokens
from hilora.compose.fusion import Fused
from hilora.compose.lag import Lag
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import Phatgoose, SigmoidGate, standardise
from hilora.compose.pool_rocs import PoolTopRocs
from hilora.compose.rocs import TopRocs
from hilora.compose.router_lora import RouterLora
from hilora.compose.spectr import Spectr
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.types import Factors, Plan, Site

IN, OUT, RANKS, BATCH, TOKENS = 24, 10, [4, 2, 1], 4, 40
ROW = torch.arange(TOKENS) % BATCH
EXPERTS = (0, 1, 2)


def random(*shape: int, seed: int) -> Tensor:
    """Numbers that bf16 can hold."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


ADAPTERS: list[Factors] = [{"site": (random(r, IN, seed=i), random(OUT, r, seed=i + 9))} for i, r in enumerate(RANKS)]
X = random(TOKENS, IN, seed=20)
GATES: dict[str, Gate] = {
    "top": TopRocs("contribution"),
    "top weighted": TopRocs(weighted=True),
    "pool top": PoolTopRocs(3, "contribution"),
    "weighted": Weighted(),
    "fused": Fused(),
    "arrow": Arrow(2, temperature=0.23),
    "spectr": Spectr(2),
    "spectr softmax": Spectr(2, "basis", "softmax", 0.23),
    "spectr fused": Spectr(2, fuse=True),
    "lag": Lag(2),
    "router elsewhere": RouterLora({}),
    "router": RouterLora({"site": (random(2, IN, seed=30) / 8, random(OUT, 2, seed=31) / 8)}),
    "phatgoose": Phatgoose({"site": random(3, IN, seed=32)}),
    "sigmoid": SigmoidGate({"site": random(IN, seed=33)}),
    "moe": Moe({"site": random(3, IN, seed=34).bfloat16()}, EXPERTS),
    "moe top": Moe({"site": random(3, IN, seed=34)}, EXPERTS, 2),
    "smear": Moe({"site": random(3, IN, seed=34).bfloat16()}, EXPERTS, fused=True),
}


def plan(whole: bool) -> Plan:
    used = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    rocs = used * torch.tensor(RANKS) if whole else used
    weights = used / used.sum(1, keepdim=True).clamp_min(1)
    return Plan(EXPERTS, torch.tensor(RANKS), weights, rocs, torch.linspace(0.5, 1.5, BATCH), whole)


def site(dtype: torch.dtype) -> Site:
    return stack_sites(ADAPTERS, {"site": (torch.device("cpu"), dtype)})["site"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", GATES)
def test_a_gate_answers_in_the_sites_precision_and_weighs_as_in_fp64(name: str, whole: bool) -> None:
    z = (site(torch.float64).down @ X.T).bfloat16()  # (roc, token), the same numbers for both
    found = GATES[name](site(torch.bfloat16), plan(whole))(z.clone(), Tokens(X.bfloat16(), ROW))
    want = GATES[name](site(torch.float64), plan(whole))(z.double(), Tokens(X, ROW))
    assert found.dtype == torch.bfloat16
    close = 0.15 if name == "router" else 0.02  # which multiplies in the site's precision before it weighs
    torch.testing.assert_close(found.double(), want, rtol=close, atol=close)


def test_what_routing_is_worked_out_in_is_fp32_at_least() -> None:
    x = random(5, IN, seed=40) * 300 + 7
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        assert standardise(x.to(dtype)).dtype == wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_site_is_stacked_where_and_in_what_its_module_is(dtype: torch.dtype) -> None:
    elsewhere = torch.device("meta")
    found = stack_sites(ADAPTERS, {"site": (elsewhere, dtype)})["site"]
    own = [found.down, found.up, found.size, found.owner, *(columns for _, columns in found.blocks)]
    assert all(tensor.device == elsewhere for tensor in own)
    assert found.down.dtype == found.up.dtype == found.size.dtype == dtype
