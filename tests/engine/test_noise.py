"""Noise of a GPU, checked without one: the kernel run by triton's interpreter, and compiled for two cards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
ROOT = Path(__file__).parents[2]

INTERPRETED = """
import torch
from hilora.engine.kernels.gumbel import gumbel, words
from hilora.engine.kernels.philox import BLOCK, fill
from hilora.engine.pick import draw_key

own = [draw_key(seed, text, answer) for seed in (0, 3) for text in ("", "abab") for answer in (0, 1)]
keys = [0, 1, 2**63, 2**64 - 1, 2**64, 2**127, 2**128 - 1, *own]
positions = [0, 1, 2, 511, 2**31, 2**32 + 1, 2**40, 2**63 - 1, 2**63 + 5, 2**64 - 1, 7, 8, 9, 10, 11][: len(keys)]
for size in (1, 2, 3, 4, 5, 61, 4 * BLOCK - 1, 4 * BLOCK, 4 * BLOCK + 1, 9 * BLOCK + 7):
    out = torch.full((len(keys) + 1, size), 5.0)
    fill(out[: len(keys)], words(keys, positions))
    expected = torch.stack([gumbel(key, position, size) for key, position in zip(keys, positions, strict=True)])
    assert torch.equal(out[:-1], expected), size
    assert (out[-1] == 5).all(), f"{size}: written beyond the last row"
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hilora.engine.kernels.philox import BLOCK, noise

for card in (80, 90):
    kinds = {"out": "*fp32", "drawn": "*i64", "size": "i32", "block": "constexpr"}
    built = triton.compile(ASTSource(noise, kinds, {"block": BLOCK}), target=GPUTarget("cuda", card, 32))
    assert built.asm["cubin"]
    assert "mul.hi.u64" in built.asm["ptx"] and "fma.rn.f64" in built.asm["ptx"]
"""


def run(script: str, folder: Path, **environment: str) -> None:
    """In a process of its own: triton reads its environment when it is imported."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", script], env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kernel_makes_the_numbers_of_numpy_whatever_key_position_and_size(tmp_path: Path) -> None:
    run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_cards_that_are_not_here(tmp_path: Path) -> None:
    run(COMPILED, tmp_path)
