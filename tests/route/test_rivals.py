"""LoGo against its authors' numbers and a loop, LoRAuter against a loop from its paper."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hilora.errors import InputError, MismatchError, PoolError, UnknownNameError
from hilora.methods.lookup import get_method
from hilora.route.logo import Logo, block_of, last_query
from hilora.route.lorauter import Lorauter
from hilora.route.router import Query
from hilora.types import Factors

SITE = "model.layers.1.self_attn.q_proj"
TOLD = json.loads((Path(__file__).parent / "logo.json").read_text())
"""What the authors' code gives for a tiny random model: hidden states, factors, scores, choices and weights."""


class Samples:
    """Embeddings alone."""

    ridge = 1e-4

    def __init__(self, each: Sequence[Tensor]) -> None:
        self.each = each

    def __len__(self) -> int:
        return len(self.each)

    def shared(self) -> None:
        """Nothing."""

    def embeddings(self) -> Sequence[Tensor]:
        return self.each


class Adapters(Samples):
    """A pool's adapters, as LoGo reads them."""

    def __init__(self, all_of: Sequence[Factors]) -> None:
        super().__init__([])
        self.all_of = all_of
        self.entries = [SimpleNamespace(name=f"a{i}", hash=str(i)) for i in range(len(all_of))]

    def factors(self, content: str) -> Factors:
        return self.all_of[int(content)]


def told() -> Adapters:
    pairs = [(torch.tensor(each["down"]), torch.tensor(each["up"])) for each in TOLD["adapters"]]
    return Adapters([{SITE: pair} for pair in pairs])


def everyone(rows: int, count: int) -> Tensor:
    return torch.ones(rows, count, dtype=torch.bool)


def asked(state: Tensor, seen: list[str] | None = None) -> Query:
    def read(name: str) -> Tensor:
        if seen is not None:
            seen.append(name)
        return state

    return Query([""] * len(state), read=read)


@pytest.mark.parametrize("signal", ["norm", "entropy"])
def test_logo_gives_what_its_authors_code_gives(signal: str) -> None:
    router = Logo(TOLD["k"], signal).fit(told())
    state, want, seen = torch.tensor(TOLD["state"]), TOLD[signal], list[str]()
    route = router(asked(state, seen), everyone(len(state), 6))
    assert seen == ["model.layers.1"]
    torch.testing.assert_close(router.score(state), torch.tensor(want["scores"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(route.weights, torch.tensor(want["weights"]), rtol=1e-5, atol=1e-6)
    assert route.ids.tolist() == want["chosen"]


def test_the_pass_reads_what_the_authors_code_reads(tiny: Any) -> None:
    from hilora.engine.last_token import LastToken
    from hilora.engine.thread import engine_of

    model = tiny.model("llama", torch.float32)
    found = LastToken(model, tiny.tokenizer(), engine_of(model, 0))(TOLD["prompts"], "model.layers.1")
    torch.testing.assert_close(found, torch.tensor(TOLD["state"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signal", ["norm", "entropy"])
def test_logo_is_the_papers_loop_among_those_that_a_row_may_use(signal: str) -> None:
    generator = torch.Generator().manual_seed(2)
    ranks, k = [3, 1, 5, 2], 2
    pairs = [(torch.randn(r, 6, generator=generator), torch.randn(4, r, generator=generator)) for r in ranks]
    router = Logo(k, signal, reads="site").fit(Adapters([{SITE: pair} for pair in pairs]))
    state = torch.randn(3, 6, generator=generator)
    allowed = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    seen: list[str] = []
    route = router(asked(state, seen), allowed)
    assert seen == [SITE]
    for row in range(3):
        strength = {}
        for i, (down, up) in enumerate(pairs):
            if not allowed[row, i]:
                continue
            out = (up.double() @ (down.double() @ state[row].double())).tolist()
            if signal == "norm":
                strength[i] = math.sqrt(sum(value**2 for value in out))
                continue
            total = sum(math.exp(value) for value in out)
            shares = [math.exp(value) / total for value in out]
            strength[i] = 1 / (-sum(share * math.log(share + 1e-8) for share in shares) + 1e-6)
        best = sorted(strength, key=lambda i: -strength[i])[:k]
        used = route.weights[row] > 0
        assert route.ids[row][used].tolist() == best
        want = torch.tensor([strength[i] / sum(strength[j] for j in best) for i in best])
        torch.testing.assert_close(route.weights[row][used], want)


def test_an_adapter_without_the_site_or_that_cannot_be_read_adds_nothing() -> None:
    pair = (torch.ones(1, 3), torch.ones(2, 1))

    class Damaged(Adapters):
        def factors(self, content: str) -> Factors:
            if content == "1":
                raise PoolError("damaged")
            return super().factors(content)

    router = Logo().fit(Damaged([{SITE: pair}, {}, {"model.layers.0.self_attn.v_proj": pair}]))
    route = router(asked(torch.ones(1, 3)), everyone(1, 3))
    assert route.ids[0, 0] == 0
    torch.testing.assert_close(route.weights, torch.tensor([[1.0, 0, 0]]), atol=1e-6, rtol=0)


def test_an_adapter_that_reaches_further_is_asked_where_the_others_are() -> None:
    here, beyond = (torch.ones(1, 3), torch.ones(2, 1)), (torch.ones(1, 3), torch.full((2, 1), 9.0))
    last = "model.layers.7.self_attn.q_proj"
    router = Logo().fit(Adapters([{SITE: here}, {SITE: here, last: beyond}, {SITE: here}]))
    assert router.site_ == SITE
    torch.testing.assert_close(router.score(torch.ones(1, 3)), torch.full((1, 3), 3 * math.sqrt(2)))
    router = Logo(site=last).fit(Adapters([{SITE: here}, {SITE: here, last: beyond}, {SITE: here}]))
    torch.testing.assert_close(router.score(torch.ones(1, 3)), torch.tensor([[0, 27 * math.sqrt(2), 0]]))


def test_the_site_is_the_last_blocks_query_projection_that_most_adapters_change() -> None:
    def of(*sites: str) -> str:
        return last_query(Counter(sites))

    layers = [f"model.layers.{i}.self_attn.{p}_proj" for i in (2, 9, 10) for p in "qv"]
    assert of(*layers) == "model.layers.10.self_attn.q_proj"
    assert of(*layers, *layers, "model.layers.11.self_attn.q_proj") == "model.layers.10.self_attn.q_proj"
    t5 = [f"{side}.block.{i}.layer.0.SelfAttention.q" for side in ("encoder", "decoder") for i in (0, 1)]
    assert of(*t5) == "encoder.block.1.layer.0.SelfAttention.q"
    assert of("model.decoder.layers.3.self_attn.q_proj") == "model.decoder.layers.3.self_attn.q_proj"
    assert of("h.0.mlp.down", "h.1.mlp.up", "h.1.mlp.down") == "h.1.mlp.down"
    assert of() == ""
    assert block_of(t5[1]) == "encoder.block.1.layer.0"
    assert block_of("transformer.h.1.attn.c_attn") == "transformer.h.1"
    assert block_of("lm_head") == "lm_head"


def test_logo_refuses_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="got 0, expected at least 1"):
        get_method("logo", k=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'norm'"):
        Logo(signal="nrom")
    with pytest.raises(UnknownNameError, match="Did you mean 'block'"):
        Logo(reads="blok")
    with pytest.raises(UnknownNameError, match="site"):
        Logo(site="model.layers.1.self_attn.k_proj").fit(told())
    with pytest.raises(MismatchError, match="reads=site"):
        Logo().fit(told()).score(torch.ones(1, 5))


@pytest.mark.parametrize(("k", "temperature", "samples"), [(3, 0.2, 200), (2, 1.0, 4), (9, 0.05, 1)])
def test_lorauter_is_the_papers_loop(k: int, temperature: float, samples: int) -> None:
    generator = torch.Generator().manual_seed(6)
    each = [torch.randn(7, 5, generator=generator) for _ in range(4)]
    query = torch.randn(3, 5, generator=generator)
    allowed = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    router = Lorauter(k, temperature=temperature, samples=samples).fit(Samples(each))
    route = router(Query([""] * 3, query), allowed)
    for row in range(3):
        near = {}
        for i, own in enumerate(each):
            if allowed[row, i]:
                task = sum(list(own[:samples]), torch.zeros(5)) / len(own[:samples])
                near[i] = float(task @ query[row] / (task.norm() * query[row].norm()))
        best = sorted(near, key=lambda i: -near[i])[:k]
        used = route.weights[row] > 0
        assert route.ids[row][used].tolist() == best
        total = sum(math.exp(near[i] / temperature) for i in best)
        want = torch.tensor([math.exp(near[i] / temperature) / total for i in best])
        torch.testing.assert_close(route.weights[row][used], want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(route.scores[row][used], torch.tensor([near[i] for i in best]))


def test_lorauter_refuses_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="temperature"):
        get_method("lorauter", temperature=0.0)
    with pytest.raises(InputError, match="samples"):
        get_method("lorauter", samples=0)
    with pytest.raises(InputError, match="at least 1"):
        get_method("lorauter", k=0)
