"""Drawing on a GPU, checked without one: the kernel by triton's interpreter, the rest on a card that is played."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from card import CUDA, played

from hilora.engine.asked import PROCESSES
from hilora.engine.heard import Alone, Told
from hilora.engine.kernels import gumbel as noises
from hilora.engine.kernels.gumbel import gumbel, gumbel_rows
from hilora.engine.pick import Pick, draw_key, pick_tokens
from hilora.engine.request import Request
from hilora.engine.sampling import SAMPLING, SeededSampling, warpers_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
ROOT = Path(__file__).parents[2]
VOCAB = 97
a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")

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


@linux
def test_the_kernel_makes_the_numbers_of_numpy_whatever_key_position_and_size(tmp_path: Path) -> None:
    run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


@linux
def test_the_kernel_compiles_for_cards_that_are_not_here(tmp_path: Path) -> None:
    run(COMPILED, tmp_path)


def fill(out: Any, drawn: Any) -> None:
    """The kernel's twin: from what it is sent."""
    rows = [[int(word) & (2**64 - 1) for word in row] for row in drawn.tolist()]
    out.copy_(torch.stack([gumbel(low | high << 64, place, out.shape[1]) for low, high, place in rows]).to(CUDA))


WARPS: list[dict[str, Any]] = [
    {"temperature": 1.5},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
    {"min_p": 0.02},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 3e-3},
    {"eta_cutoff": 3e-3},
]
ACTS: dict[str, Any] = {
    "sequence_bias": [[[5], 2.0], [[7, 8], -4.0]],
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[3], [4, 5]],
    "suppress_tokens": [1, 2, 3],
}


def rows() -> list[Request]:
    """Of every kind, some twice."""
    picks: list[Any] = [Pick(), Pick(least=9, ends=(5, 6)), Told([3] * 9), Pick()]
    for options in [*WARPS, *WARPS[:2]]:
        picks.append(Pick(warp=warpers_of(options), key=draw_key(3, str(len(picks)), 0)))
    for name, value in ACTS.items():
        process = PROCESSES[name](value, (5,))
        picks.append(Pick([process], key=draw_key(4, name, 0), least=2, ends=(9,)))
        picks.append(Pick([process], warpers_of({"top_p": 0.9}), draw_key(5, name, 0), 9, (9, 10)))
    found = [Request([7, 8, 11, 7], 40, None, pick, Alone()) for pick in picks]
    for number, request in enumerate(found):
        request.new = [12] * (number % 4)
    found[3].ended = True
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_card_draws_what_the_cpu_draws_and_is_waited_for_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(ACTS) == set(PROCESSES)
    logits = 3 * torch.randn(len(rows()), VOCAB, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = pick_tokens(rows(), logits.clone())
    alone = [
        int(row.argmax()) if request.ended or request.pick.is_plain(len(request.new)) else request.pick(request, row)
        for request, row in zip(rows(), logits, strict=True)
        if not request.pick.barred(len(request.new))
    ]
    assert expected[:1] + expected[2:] == alone
    with played(monkeypatch) as card:
        monkeypatch.setattr(noises, "_kernel", lambda device: fill)
        there = logits.to(CUDA)
        assert pick_tokens(rows(), there) == expected
        assert torch.equal(there.cpu(), logits)
        usual = [Pick(warp=warpers_of(options)).kind for options in WARPS[:3]]  # others ask the card themselves
        drawn = [each for each in rows() if isinstance(each.pick, Pick) and each.pick.kind in usual]
        drawn += [Request([1], 9, None, Pick(least=9, ends=(5,)), Alone()), drawn[0], rows()[0]]
        picked = logits[: len(drawn)].to(CUDA)
        monkeypatch.setattr(noises, "_kernel", lambda device: lambda out, drawn: out.zero_())
        card.waits.clear()
        pick_tokens(drawn, picked)
        assert +card.waits == {"to the CPU": 1}


def test_a_batch_of_a_card_is_drawn_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, ids = [draw_key(1, text, 0) for text in "abc"], torch.ones(3, 5, dtype=torch.long)
    scores = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    sampling = SeededSampling(keys, temperature=0.7, top_k=20)
    sampling.start = 2
    expected = sampling(ids, scores)
    with played(monkeypatch):
        monkeypatch.setattr(noises, "_kernel", lambda device: fill)
        assert torch.equal(sampling(ids.to(CUDA), scores.to(CUDA)).cpu(), expected)


def test_a_card_without_triton_gets_its_noise_from_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = gumbel_rows([1, 2], [3, 4], 7, torch.device("cpu"))
    noises._kernel.cache_clear()
    with played(monkeypatch):
        monkeypatch.setitem(sys.modules, "hilora.engine.kernels.philox", None)
        for _ in range(2):
            assert torch.equal(gumbel_rows([1, 2], [3, 4], 7, CUDA).cpu(), expected)
        assert not caplog.records
    noises._kernel.cache_clear()
    with played(monkeypatch):
        broken = type(sys)("philox")
        broken.fill = lambda *_: 1 / 0  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hilora.engine.kernels.philox", broken)
        for _ in range(2):
            assert torch.equal(gumbel_rows([1, 2], [3, 4], 7, CUDA).cpu(), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    noises._kernel.cache_clear()


def test_rows_of_the_same_options_are_warped_together_and_others_are_not() -> None:
    assert "top_k" in SAMPLING
    one, other = (Pick(warp=warpers_of({"top_k": 5, "temperature": 0.5})) for _ in range(2))
    assert one.kind == other.kind
    assert one.kind != Pick(warp=warpers_of({"top_k": 5})).kind
    assert one.kind != Pick(warp=warpers_of({"top_k": 6, "temperature": 0.5})).kind


@a_card
@pytest.mark.parametrize("size", [1, 61, 4096, 32003])
def test_on_a_card_noise_is_numpys_but_for_the_last_place(size: int) -> None:
    keys, positions = [draw_key(3, str(row), 0) for row in range(33)], [7 * row for row in range(33)]
    expected = gumbel_rows(keys, positions, size, torch.device("cpu"))
    assert noises._kernel(torch.device("cuda", 0)) is not None
    found = gumbel_rows(keys, positions, size, torch.device("cuda", 0)).cpu()
    torch.testing.assert_close(found, expected, rtol=1.2e-7, atol=1e-7)
    assert int((found != expected).sum()) <= 1 + found.numel() // 10_000


@a_card
def test_on_a_card_the_same_tokens_are_drawn() -> None:
    logits = 3 * torch.randn(len(rows()), VOCAB, generator=torch.Generator().manual_seed(0))
    assert pick_tokens(rows(), logits.cuda()) == pick_tokens(rows(), logits)
