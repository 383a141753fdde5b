"""The played card refuses what a card would, keeps the numbers, and counts who waits."""

from __future__ import annotations

import pytest
import torch
from card import CUDA, played


def test_a_played_card_computes_refuses_strangers_and_counts_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = torch.randn(3, 4), torch.randn(4, 5)
    with played(monkeypatch) as card:
        there = here.to(CUDA, non_blocking=True)
        assert there.device == CUDA
        assert there[0].device == (there + 1).device == torch.zeros(2, device=CUDA).device == CUDA
        for strange in (lambda: there @ other, lambda: torch.cat([there, here]), lambda: other[there[:, 0].long()]):
            with pytest.raises(RuntimeError, match="of the CPU"):
                strange()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert not +card.waits
        there[1] = 2.0
        there[:, 0] *= there[:, 1]
        expected = here.clone()
        expected[1] = 2.0
        expected[:, 0] *= expected[:, 1]
        assert torch.equal(there.cpu(), expected)
        assert +card.waits == {"to the CPU": 1}
        assert there.argmax().item() == expected.argmax()
        there[torch.tensor([0])]
        other.to(CUDA)
        there.nonzero()
        assert +card.waits == {
            "to the CPU": 1,
            "_local_scalar_dense": 1,
            "indices": 1,
            "to the card": 1,
            "nonzero": 1,
        }
