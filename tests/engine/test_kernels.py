"""Kernels for a GPU give what their twins give, and compile; neither needs one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hilora.compose.delta import Tokens
from hilora.compose.rocs import TopRocs
from hilora.engine.fused import FusedTopRocs, lies_of
from hilora.engine.kernels import top_rocs as op
from hilora.types import Plan, Rocs

KINDS = [("value", False), ("magnitude", False), ("contribution", True)]


def rocs_of(ranks: list[int], dtype: torch.dtype) -> Rocs:
    """ROCs of adapters in runs of one rank, as they are stacked."""
    torch.manual_seed(len(ranks))
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    owner = torch.tensor([i for i in order for _ in range(ranks[i])])
    blocks = tuple((rank, torch.tensor([i for i in order if ranks[i] == rank])) for rank in sorted(set(ranks)))
    return Rocs(torch.zeros(len(owner), 3, dtype=dtype), torch.rand(len(owner)).to(dtype), owner, blocks)


def plan_of(ranks: list[int], batch: int) -> Plan:
    """Any budgets; every other adapter has a higher rank elsewhere."""
    largest = torch.tensor([rank + 2 * (i % 2) for i, rank in enumerate(ranks)])
    rocs = (torch.rand(batch, len(ranks)) * (largest + 1)).long()
    rocs[0] = 0
    return Plan(tuple(range(len(ranks))), largest, torch.rand(batch, len(ranks)), rocs, torch.rand(batch) + 0.5)


def test_the_operation_is_the_equation() -> None:
    for ranks, batch, each in (([4, 4, 2], 5, 1), ([7, 1, 33, 7], 3, 4)):
        rocs, plan = rocs_of(ranks, torch.float64), plan_of(ranks, batch)
        z = torch.randn(len(rocs.owner), batch * each, dtype=torch.float64)
        z[:4, 1] = 0.5  # ties
        tokens = Tokens(torch.zeros(batch * each, 3), torch.arange(batch).repeat_interleave(each))
        for criterion, weighted in KINDS:
            wanted = TopRocs(criterion, weighted)(rocs, plan)(z, tokens)
            found = FusedTopRocs(criterion, weighted)(rocs, plan)(z, tokens)
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_torch_accepts_the_operation() -> None:
    rocs, plan = rocs_of([4, 2], torch.float32), plan_of([4, 2], 3)
    *lies, most = lies_of(rocs)
    given = (torch.randn(6, 6), rocs.size, *lies, *FusedTopRocs().shares_of(plan), 2, most)
    torch.library.opcheck(op.top_rocs, given)


def interpreted() -> None:
    """Compare the kernel, run by triton's interpreter, with its twin."""
    for ranks, batch, each in (([4, 4, 2], 5, 1), ([7, 1, 70, 64], 3, 2), ([8] * 20, 2, 1)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            rocs, plan = rocs_of(ranks, dtype), plan_of(ranks, batch)
            z = torch.randn(batch * each, len(rocs.owner)).to(dtype)
            z[1, :4] = 0.5
            *lies, most = lies_of(rocs)
            for place, (_, weighted) in enumerate(KINDS):
                shares = FusedTopRocs(weighted=weighted).shares_of(plan)
                for given in (z, z.t().contiguous().t()):
                    all_of = (given, rocs.size, *lies, *shares, place, most)
                    wanted, found = op.by_torch(*all_of), op.by_triton(*all_of)
                    if dtype == torch.bfloat16:  # the interpreter cuts off where hardware rounds
                        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
                        assert torch.equal(found == 0, wanted == 0)
                    else:
                        assert torch.equal(found, wanted)


def compiled() -> None:
    """Compile the kernel for cards that are not there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    choose = op.kernel()
    names = list(choose.arg_names)
    for card in (80, 90):
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            kinds = dict.fromkeys(names, "i32") | dict.fromkeys(("z", "size", "out"), f"*{dtype}")
            kinds |= dict.fromkeys(("first", "count", "owner", "budget", "rank"), "*i32") | {"factor": "*fp32"}
            fixed = {"CRITERION": 2, "MOST": 8, "BLOCK": 128, "DOUBLE": dtype == "fp64"}
            source = ASTSource(
                choose, kinds | dict.fromkeys(fixed, "constexpr"), {(names.index(n),): v for n, v in fixed.items()}
            )
            assert triton.compile(source, target=GPUTarget("cuda", card, 32)).asm["cubin"]


@pytest.mark.parametrize(("what", "more"), [("interpreted", {"TRITON_INTERPRET": "1"}), ("compiled", {})])
def test_the_kernel(what: str, more: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own: triton decides as it is imported."""
    environment = os.environ | more | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, __file__, what]
    ran = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]


if __name__ == "__main__":
    {"interpreted": interpreted, "compiled": compiled}[sys.argv[1]]()
