"""The composers with trained weights against loops written from their papers, one token and one adapter at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hilora.compose.delta import Gate, Tokens, plain
from hilora.compose.moe import Moe
from hilora.compose.phatgoose import Phatgoose, SigmoidGate, standardise
from hilora.compose.router_lora import RouterLora
from hilora.compose.stack import stack_sites
from hilora.errors import InputError
from hilora.types import Factors, Plan

IN, OUT, RANKS, BATCH, EACH, POOL = 12, 10, [4, 2, 4, 6], 5, 3, 9
IDS = (7, 2, 5, 0)
"""Positions of the plan's adapters in a pool of nine."""
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ADAPTERS: list[Factors] = [
    {"site": (random(rank, IN, seed=i), random(OUT, rank, seed=i + 10))} for i, rank in enumerate(RANKS)
]
X = random(BATCH * EACH, IN, seed=30)
ROW = torch.arange(BATCH * EACH) // EACH
USED = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
"""The last row may use no adapter."""


def plan() -> Plan:
    weights = USED / USED.sum(1, keepdim=True).clamp_min(1)
    scale = torch.linspace(0.5, 1.5, BATCH)
    return Plan(IDS, torch.tensor(RANKS), weights, USED * torch.tensor(RANKS), scale, whole=True)


def composed(gate: Gate) -> Tensor:
    site = stack_sites(ADAPTERS, {"site": (CPU, torch.float64)})["site"]
    return plain(X, ROW, plan(), gate, site)


def output(i: int, token: Tensor) -> Tensor:
    down, up = ADAPTERS[i]["site"]
    return up @ (down @ token)


def rows() -> list[tuple[Tensor, list[int], float]]:
    """(token, adapters that it may use, its row's scale)."""
    scale = plan().scale.tolist()
    return [(X[t], USED[t // EACH].nonzero()[:, 0].tolist(), scale[t // EACH]) for t in range(len(X))]


@pytest.mark.parametrize("rank", [1, 3])
def test_router_lora_attends_to_the_adapters_outputs(rank: int) -> None:
    down, up = random(rank, IN, seed=40), random(OUT, rank, seed=41)
    expected = []
    for token, usable, scale in rows():
        out = torch.zeros(OUT, dtype=torch.float64)
        if usable:
            query = down @ token
            values = [output(i, token) for i in usable]
            scores = torch.stack([query @ (up.T @ value) for value in values]) / rank**0.5
            for weight, value in zip(torch.softmax(scores, 0), values, strict=True):
                out += scale * weight * value
        expected.append(out)
    torch.testing.assert_close(composed(RouterLora({"site": (down, up)})), torch.stack(expected))


def test_router_lora_that_was_not_trained_at_all_is_the_mixture() -> None:
    found = composed(RouterLora({"site": (random(3, IN), torch.zeros(OUT, 3, dtype=torch.float64))}))
    expected = [
        sum((scale * output(i, token) / len(usable) for i in usable), torch.zeros(OUT, dtype=torch.float64))
        for token, usable, scale in rows()
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_site_that_the_router_does_not_know_gets_the_mixture() -> None:
    known = RouterLora({"site": (random(3, IN), torch.zeros(OUT, 3, dtype=torch.float64))})
    torch.testing.assert_close(composed(RouterLora({"other": (random(3, IN), random(OUT, 3))})), composed(known))


@pytest.mark.parametrize("name", ["router", "phatgoose", "moe", "smear"])
def test_an_adapter_without_the_site_changes_nothing_for_the_others(name: str) -> None:
    """Plan columns and places at a site differ then."""
    experts = tuple(sorted(IDS))
    gates: dict[str, Gate] = {
        "router": RouterLora({"site": (random(3, IN, seed=90), random(OUT, 3, seed=91))}),
        "phatgoose": Phatgoose({"site": random(POOL, IN, seed=92)}),
        "moe": Moe({"site": random(4, IN, seed=93)}, experts, 2),
        "smear": Moe({"site": random(4, IN, seed=93)}, experts, fused=True),
    }
    where = {"site": (CPU, torch.float64), "other": (CPU, torch.float64)}
    elsewhere: Factors = {"other": ADAPTERS[0]["site"]}
    site = stack_sites([elsewhere, *ADAPTERS[1:]], where)["site"]
    full = plan()
    found = plain(X, ROW, full, gates[name], site)
    part = replace(full, ids=IDS[1:], ranks=full.ranks[1:], weights=full.weights[:, 1:], rocs=full.rocs[:, 1:])
    alone = stack_sites(ADAPTERS[1:], where)["site"]
    expected = plain(X, ROW, part, gates[name], alone)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 2, 9])
def test_phatgoose_takes_the_k_most_alike_standardised_gates(k: int) -> None:
    vectors = random(POOL, IN, seed=50)
    expected = []
    for token, usable, scale in rows():
        unit = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
        found = []
        for i in usable:
            vector = vectors[IDS[i]]
            found.append((float(((vector - vector.mean()) / (vector.var(correction=0) + 1e-5).sqrt()) @ unit), i))
        found = sorted(found, reverse=True)[:k]
        weights = torch.softmax(torch.tensor([a for a, _ in found], dtype=torch.float64) / IN**0.5, 0)
        out = torch.zeros(OUT, dtype=torch.float64)
        for weight, (_, i) in zip(weights, found, strict=True):
            out += scale * weight * output(i, token)
        expected.append(out)
    torch.testing.assert_close(composed(Phatgoose({"site": vectors}, k)), torch.stack(expected))


def test_standardised_values_have_mean_0_and_variance_1() -> None:
    found = standardise(random(6, 50) * 7 + 3)
    torch.testing.assert_close(found.mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_sigmoid_gate_opens_by_the_tokens_projection() -> None:
    vector = random(IN, seed=60)
    site = stack_sites(ADAPTERS[:1], {"site": (CPU, torch.float64)})["site"]
    scale = torch.linspace(0.5, 1.5, BATCH)
    alone = Plan((3,), torch.tensor([4]), torch.ones(BATCH, 1), torch.full((BATCH, 1), 4), scale, True)
    expected = torch.stack([output(0, token) / (1 + torch.exp(-vector @ token)) for token in X])
    expected *= scale[ROW, None].double()
    torch.testing.assert_close(plain(X, ROW, alone, SigmoidGate({"site": vector}), site), expected)


@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_mixture_weighs_its_experts_by_the_dense_layers_softmax(k: int | None, is_fused: bool) -> None:
    experts = (0, 2, 5, 7)
    dense = random(4, IN, seed=70)
    expected = []
    for token, usable, scale in rows():
        out, down, up = (torch.zeros(*shape, dtype=torch.float64) for shape in ((OUT,), (6, IN), (OUT, 6)))
        logits = [(float(dense[experts.index(IDS[i])] @ token), i) for i in usable]
        kept = sorted(logits, reverse=True)[: k or 99]
        weights = torch.softmax(torch.tensor([a for a, _ in kept], dtype=torch.float64), 0)
        for weight, (_, i) in zip(weights, kept, strict=True):
            a, b = ADAPTERS[i]["site"]
            out += scale * weight * (b @ (a @ token))
            down[: len(a)] += weight * a
            up[:, : len(a)] += weight * b
        expected.append(scale * (up @ (down @ token)) if is_fused else out)
    found = composed(Moe({"site": dense}, experts, k, is_fused))
    torch.testing.assert_close(found, torch.stack(expected))


def test_noise_chooses_experts_as_often_as_the_softmax_says() -> None:
    dense, experts = random(4, IN, seed=80) * 0.3, (0, 2, 5, 7)
    site = stack_sites(ADAPTERS, {"site": (CPU, torch.float64)})["site"]
    every = torch.ones(4000, 4, dtype=torch.long)
    same = Plan(IDS, torch.tensor(RANKS), every / 4, every * torch.tensor(RANKS), torch.ones(4000), True)
    x = X[:1].expand(4000, -1)
    gate = Moe({"site": dense}, experts, 1, noise=torch.Generator().manual_seed(3))
    z = gate(site, same)(site.down @ x.T, Tokens(x, torch.arange(4000)))
    used = torch.stack([(z[site.owner == column] != 0).any(0) for column in range(4)])  # (column, token)
    assert bool((used.sum(0) == 1).all())
    expected = torch.softmax(dense[[experts.index(i) for i in IDS]] @ X[0], 0)
    assert used.double().mean(1).tolist() == pytest.approx(expected.tolist(), abs=0.03)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("k", [None, 1])
def test_noisy_weights_are_the_softmax_of_log_shares_and_gumbel_noise_over_tau(
    k: int | None, temperature: float
) -> None:
    """Of which the k largest are kept going forward, while the gradient is that of all (Eq. 18)."""
    experts, dense = (0, 2, 5, 7), random(4, IN, seed=80).requires_grad_()
    site = stack_sites(ADAPTERS, {"site": (CPU, torch.float64)})["site"]
    every = torch.ones(1, 4, dtype=torch.long)
    same = Plan(IDS, torch.tensor(RANKS), every / 4, every * torch.tensor(RANKS), torch.ones(1), True)

    def weights_of(seed: int) -> Tensor:
        """(column, token)."""
        gate = Moe({"site": dense}, experts, k, noise=torch.Generator().manual_seed(seed), temperature=temperature)
        z = torch.ones(sum(RANKS), len(X), dtype=torch.float64)
        gated = gate(site, same)(z, Tokens(X, torch.zeros(len(X), dtype=torch.long)))
        return torch.stack([gated[site.owner == column][0] for column in range(4)])

    found = weights_of(5)
    assert torch.equal(found, weights_of(5))
    assert not torch.equal(found, weights_of(6))
    blocks = torch.cat([columns for _, columns in site.blocks])  # adapters lie by rank at a site
    uniform = torch.empty(4, len(X), dtype=torch.float64)
    uniform[blocks] = torch.rand(4, len(X), generator=torch.Generator().manual_seed(5)).double()
    shares = torch.softmax(dense[[experts.index(i) for i in IDS]] @ X.T, 0)
    noisy = (shares.log() - torch.log(-torch.log(uniform))) / temperature
    soft = torch.softmax(noisy, 0)
    want = soft if k is None else torch.nn.functional.one_hot(noisy.argmax(0), 4).T.double()
    torch.testing.assert_close(found, want)
    taken = random(4, len(X), seed=81)
    (gradient,) = torch.autograd.grad((found * taken).sum(), dense)
    (of_soft,) = torch.autograd.grad((soft * taken).sum(), dense)
    torch.testing.assert_close(gradient, of_soft)


def test_noise_that_is_the_same_for_all_experts_changes_nothing_even_at_the_end_of_its_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))  # whose logarithm is not finite
    dense, experts = {"site": random(4, IN)}, (0, 2, 5, 7)
    noisy = composed(Moe(dense, experts, noise=torch.Generator()))
    torch.testing.assert_close(noisy, composed(Moe(dense, experts)))


def test_no_experts_or_adapters_per_token_make_no_sense() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Moe({}, (), 0)
    with pytest.raises(InputError, match="at least 1"):
        Phatgoose({}, 0)
