"""Blocks of weights: the same outputs, the same weights, and nothing left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hilora import METHODS, HiLoRA, Pool
from hilora.engine import packed
from hilora.engine.attachment import Attachment
from hilora.engine.fused import FusedTopRocs
from hilora.engine.packed import PACKS, SPARE, pack_weights

Shared = Callable[[str], tuple[Any, Pool]]
PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132"]
LABELS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture
def build(shared_pool: Shared, tokenizer: Any, embedder: Any) -> Callable[..., HiLoRA]:
    """A router over a model of its own."""

    def make(kind: str = "llama", method: str = "hilora", packed: bool | None = True) -> HiLoRA:
        model, pool = shared_pool(kind)
        own = copy.deepcopy(model)
        return HiLoRA.from_pretrained(own, pool, method, tokenizer=tokenizer, embedder=embedder, packed=packed)

    return make


def sites_of(router: HiLoRA) -> list[str]:
    return sorted({site for entry in router.planner.pool.entries for site in router.planner.pool.factors(entry.hash)})


def is_packed(model: nn.Module) -> bool:
    """Whether any two weights lie in one block."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    places = [weight.untyped_storage().data_ptr() for weight in weights]
    return len(set(places)) < len(places)


def labels_for(method: str) -> dict[str, Any]:
    return {"labels": LABELS} if method == "oracle" else {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "t5"])
def test_packed_weights_give_the_same_answers(build: Any, kind: str, method: str) -> None:
    options = {"max_new_tokens": 6} | labels_for(method)
    plain, ours = (build(kind, method, packed).generate(PROMPTS, **options) for packed in (False, True))
    assert [(a.text, a.rocs) for a in ours] == [(a.text, a.rocs) for a in plain]


@pytest.mark.parametrize("spare", [0, 1, SPARE])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("each", [1, 5])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_hidden_states_are_the_same_wherever_the_rocs_lie(
    build: Any, monkeypatch: pytest.MonkeyPatch, kind: str, each: int, spare: int, direct: bool
) -> None:
    monkeypatch.setattr(packed, "SPARE", spare)
    router = build(kind)
    plan = router.planner.plan(router.planner.route(PROMPTS), range(len(PROMPTS)))
    sites, gate = router.lanes.bank.sites_of(plan, router.planner.source), router.planner.method.gate
    ids = torch.arange(4 * each).view(4, each) % 20 + 5
    attachments = [Attachment(router.model, sites).bind(plan, gate)]
    packs = pack_weights(router.model, sites, alone=direct)
    assert packs
    ours = FusedTopRocs(gate.criterion, gate.weighted) if direct else gate  # as on a GPU
    attachments.append(Attachment(router.model, sites, packs).bind(plan, ours))

    def logits(attachment: Attachment) -> Tensor:
        with attachment(), torch.inference_mode():
            return router.model(ids).logits.clone()

    plain, ours, again = (logits(attachments[i]) for i in (0, 1, 1))
    torch.testing.assert_close(ours, plain)
    assert torch.equal(again, ours)
    base = router.model(ids).logits
    assert not torch.allclose(base, plain)


def test_values_stay_and_nothing_is_kept_twice(build: Any) -> None:
    router = build()
    before = {name: weight.clone() for name, weight in router.model.named_parameters()}
    objects = dict(router.model.named_parameters())
    with torch.no_grad():
        logits = router.model(torch.tensor([[5, 6, 7]])).logits
        packs = pack_weights(router.model, sites_of(router))
        assert packs
        assert torch.equal(router.model(torch.tensor([[5, 6, 7]])).logits, logits)
    for name, weight in router.model.named_parameters():
        assert weight is objects[name]
        assert torch.equal(weight, before[name])
    for pack in packs:
        storages = {module.weight.untyped_storage().data_ptr() for module in pack.modules}
        assert storages == {pack.weight.untyped_storage().data_ptr()}
        assert len(pack.weight) == sum(module.out_features for module in pack.modules) + SPARE


def test_gradients_reach_the_parameters_and_new_values_are_used(build: Any) -> None:
    router = build()
    plan = router.planner.plan(router.planner.route(PROMPTS[:1]), [0])
    sites, gate = router.lanes.bank.sites_of(plan, router.planner.source), router.planner.method.gate
    router.generate(PROMPTS, max_new_tokens=2)
    packs = pack_weights(router.model, sites)
    ids, weight = torch.tensor([[5]]), packs[0].modules[1].weight  # v_proj: one token looks at itself whatever q is
    with Attachment(router.model, sites, packs).bind(plan, gate)():
        (gradient,) = torch.autograd.grad(router.model(ids).logits.square().sum(), weight)
        assert gradient.abs().sum() > 0
        with torch.no_grad():
            before = router.model(ids).logits
            weight.mul_(3)
            assert not torch.allclose(router.model(ids).logits, before)


def test_a_model_of_yours_is_packed_only_if_you_say_so(build: Any) -> None:
    for wanted, expected in ((None, False), (False, False), (True, True)):
        router = build(packed=wanted)
        router.generate(PROMPTS, max_new_tokens=2)
        assert is_packed(router.model) is expected


def test_a_model_that_is_loaded_here_is_packed(
    build: Any, shared_pool: Shared, tokenizer: Any, embedder: Any, tmp_path: Any
) -> None:
    model, pool = shared_pool("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for wanted, expected in ((None, True), (False, False)):
        router = HiLoRA.from_pretrained(str(tmp_path), pool, embedder=embedder, dtype="float64", packed=wanted)
        router.generate(PROMPTS, max_new_tokens=2)
        assert is_packed(router.model) is expected


@pytest.mark.parametrize("moved", ["dtype", "replaced"])
def test_weights_that_were_moved_are_packed_anew(build: Any, moved: str) -> None:
    router = build()
    first = router.generate(PROMPTS, max_new_tokens=4)
    if moved == "dtype":
        router.model.to(torch.float32).to(torch.float64)
    else:
        layer = router.model.model.layers[0].self_attn
        layer.v_proj = copy.deepcopy(layer.v_proj)
    assert [a.text for a in router.generate(PROMPTS, max_new_tokens=4)] == [a.text for a in first]
    assert all(
        pack.intact(dict(router.model.named_modules())) for pack in pack_weights(router.model, sites_of(router))
    )


def test_modules_that_somebody_changed_are_left(build: Any) -> None:
    class Other(nn.Linear):
        """Not a plain linear module."""

    router = build()
    layer = router.model.model.layers[0].self_attn
    layer.q_proj.__class__ = Other
    names = [name for pack in pack_weights(router.model, sites_of(router)) for name in pack.names]
    assert not any(name.startswith("model.layers.0.self_attn.") for name in names)
    assert any(name.startswith("model.layers.1.self_attn.") for name in names)


def test_two_routers_share_a_models_blocks_and_let_it_go(build: Any) -> None:
    router = build()
    other = HiLoRA(router.model, router.tokenizer, router.planner, packed=True)
    one = router.generate(PROMPTS, max_new_tokens=4)
    two = other.generate(PROMPTS, max_new_tokens=4)
    assert [a.text for a in one] == [a.text for a in two]
    sites = sites_of(router)
    assert all(a is b for a, b in zip(*(pack_weights(router.model, sites) for _ in range(2)), strict=True))
    known = len(packed._blocks)
    del router, other
    gc.collect()
    assert len(packed._blocks) < known


def test_a_failing_forward_pass_leaves_the_modules_as_they_were(build: Any) -> None:
    router = build()
    plan = router.planner.plan(router.planner.route(PROMPTS), range(len(PROMPTS)))
    sites, gate = router.lanes.bank.sites_of(plan, router.planner.source), router.planner.method.gate
    attachment = Attachment(router.model, sites, pack_weights(router.model, sites)).bind(plan, gate)
    with pytest.raises(ZeroDivisionError), attachment():
        raise ZeroDivisionError
    ends = {end for ends in PACKS for end in ends}
    for name, module in router.model.named_modules():
        if name.rpartition(".")[2] in ends:
            assert "forward" not in vars(module)
