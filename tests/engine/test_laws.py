"""Laws that every routed method obeys, on tiny random models of each architecture."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import decoders
from torch import Tensor

from hilora import METHODS, HiLoRA, Pool, get_method
from hilora.base.padding import pad_batch
from hilora.base.prompts import pad_id
from hilora.engine.attachment import FORMS
from hilora.engine.batch import Batch
from hilora.engine.forward import Forward
from hilora.errors import InputError, UnknownNameError
from hilora.planner import Planner

KINDS = ["llama", "qwen2", "mistral", "gemma", "gpt2", "t5"]
EACH_BY_ITSELF = [name for name in METHODS if name != "adapter-soup"]
"""AdapterSoup adapts to the prompts of a call together; for every other method the batch changes nothing."""
CLOSE = {"lorauter": {"rtol": 1e-5, "atol": 1e-5}}
"""Weights that are cosines of fp32 embeddings show what these are rounded to, which others in their batch change."""
PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "abba xyz", "qrs"]
LABELS = ["alpha", "beta", "gamma", "delta", "alpha", "beta"]
Shared = Callable[[str], tuple[Any, Pool]]


@pytest.fixture
def build(shared_pool: Shared, tokenizer: Any, embedder: Any) -> Callable[..., HiLoRA]:
    def make(kind: str, method: str, **options: Any) -> HiLoRA:
        model, pool = shared_pool(kind)
        return HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder, **options)

    return make


def labels_for(method: str, labels: list[str]) -> dict[str, Any]:
    return {"labels": labels} if method == "oracle" else {}


def logits(router: HiLoRA, method: str, prompts: list[str], labels: list[str]) -> Tensor:
    """Next-token logits of each row, under its plan, of one padded batch."""
    encoded = [router.tokenizer(prompt)["input_ids"] for prompt in prompts]
    left = not router.model.config.is_encoder_decoder
    ids, mask = pad_batch(encoded, pad_id(router.tokenizer), left=left)
    routed = router.planner.route(prompts, **labels_for(method, labels))
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    if router.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(len(prompts), 1, dtype=torch.long)
    else:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    if routed.route is None:
        with torch.no_grad():
            return router.model(**inputs).logits[:, -1]
    with router.attached(routed, range(len(prompts))), torch.no_grad():
        return router.model(**inputs).logits[:, -1]


@pytest.mark.parametrize("method", EACH_BY_ITSELF)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_a_mixed_padded_batch_equals_the_row_alone(build: Any, kind: str, method: str) -> None:
    router = build(kind, method)
    together = logits(router, method, PROMPTS, LABELS)
    for row, (prompt, label) in enumerate(zip(PROMPTS, LABELS, strict=True)):
        torch.testing.assert_close(
            logits(router, method, [prompt], [label])[0], together[row], **CLOSE.get(method, {})
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_forms_give_what_the_plain_equation_gives(build: Any, kind: str, method: str) -> None:
    options = {"hilora-roc": {"k": 5}, "arrow": {"k": 2}, "lego": {"k": 6}}.get(method, {})
    fast, plain = (build(kind, method, form=form, **options) for form in ("fast", "plain"))
    torch.testing.assert_close(*(logits(router, method, PROMPTS, LABELS) for router in (fast, plain)))
    answers = [router.generate(PROMPTS, max_new_tokens=6, **labels_for(method, LABELS)) for router in (fast, plain)]
    assert answers[0] == answers[1]


def test_a_form_that_is_none_is_refused_and_so_is_what_it_would_ignore(build: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown form 'palin'\. Did you mean 'plain'"):
        build("llama", "hilora", form="palin")
    with pytest.raises(InputError, match="form 'plain' packs no weights"):
        build("llama", "hilora", form="plain", packed=True)


@pytest.mark.parametrize("method", EACH_BY_ITSELF)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_answer_in_any_batch_and_place(build: Any, kind: str, method: str) -> None:
    router = build(kind, method)

    def answers(order: list[int], **options: Any) -> dict[int, tuple[str, dict[str, int]]]:
        prompts, labels = [PROMPTS[i] for i in order], [LABELS[i] for i in order]
        found = router.generate(prompts, max_new_tokens=6, **labels_for(method, labels), **options)
        return {i: (answer.text, answer.rocs) for i, answer in zip(order, found, strict=True)}

    once = answers([0, 1, 2, 3, 4, 5])
    assert answers([5, 3, 1, 0, 2, 4], batch_size=4) == once
    assert answers([2]) == {2: once[2]}
    sampled = answers([0, 1, 2, 3, 4, 5], do_sample=True, temperature=1.3, seed=3)
    assert answers([4, 3, 2, 1, 0, 5], do_sample=True, temperature=1.3, seed=3, batch_size=2) == sampled


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_with_a_cache_equal_full_forward_passes(build: Any, kind: str) -> None:
    router = build(kind, "hilora")
    cached = router.generate(PROMPTS, max_new_tokens=6, use_cache=True)
    full = router.generate(PROMPTS, max_new_tokens=6, use_cache=False)
    assert [a.text for a in cached] == [a.text for a in full]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_restores_the_base_bitwise_and_no_weight_changes(build: Any, kind: str, method: str) -> None:
    router = build(kind, method)
    weights = {name: p.clone() for name, p in router.model.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})
    with torch.no_grad():
        before = router.model(**inputs).logits
        router.generate(PROMPTS, max_new_tokens=2, **labels_for(method, LABELS))
        after = router.model(**inputs).logits
    assert torch.equal(before, after)
    assert all(torch.equal(weights[name], p) for name, p in router.model.named_parameters())
    for entry in router.planner.pool.entries:
        from hilora.pool.peft import content_hash

        assert content_hash(router.planner.pool.factors(entry.hash)) == entry.hash


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT asks transformers so
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_one_whole_adapter_equals_pefts_own_output(build: Any, kind: str, shared_pool: Shared) -> None:
    from peft import PeftModel

    router = build(kind, "oracle")
    _, pool = shared_pool(kind)
    got = logits(router, "oracle", PROMPTS[:2], ["delta", "delta"])
    model = copy.deepcopy(router.model)
    peft_model = PeftModel.from_pretrained(
        model, pool.path.parent / f"{pool.path.name}-delta", autocast_adapter_dtype=False
    )
    peft_model = peft_model.to(torch.float64).eval()
    plain = HiLoRA.__new__(HiLoRA)
    plain.model, plain.tokenizer = peft_model.get_base_model(), router.tokenizer
    plain.planner = Planner(pool, get_method("base"))
    want = logits(plain, "base", PROMPTS[:2], ["delta", "delta"])
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, logits(build(kind, "base"), "base", PROMPTS[:2], ["delta", "delta"]))


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> tuple[Any, list[Pool]]:
    """A model, and pools of the same adapters that were added in different orders; tests must not change them."""
    model, folder = tiny.model("llama"), tmp_path_factory.mktemp("orders")
    return model, [
        tiny.pool(folder / order[0] / "pool", "llama", model, tiny.embedder(), order)
        for order in (["alpha", "beta", "gamma", "delta"], ["delta", "beta", "alpha", "gamma"])
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_adding_changes_nothing(method: str, orders: Any, tokenizer: Any, embedder: Any) -> None:
    model, pools = orders
    texts = []
    for pool in pools:
        router = HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder)
        answers = router.generate(PROMPTS, max_new_tokens=6, **labels_for(method, LABELS))
        texts.append([(a.text, a.rocs) for a in answers])
    assert texts[0] == texts[1]


def test_given_the_same_plan_an_unused_adapter_changes_nothing(build: Any) -> None:
    from dataclasses import replace

    router = build("llama", "hilora")
    routed = router.planner.route(PROMPTS[:1])
    plan = router.planner.plan(routed, [0])
    unused = next(i for i in range(4) if i not in plan.ids)
    ids = (*plan.ids, unused)
    zero = torch.zeros(1, 1)
    more = replace(
        plan,
        ids=ids,
        ranks=torch.tensor([router.planner.pool.entries[i].rank for i in ids]),
        weights=torch.cat([plan.weights, zero], 1),
        rocs=torch.cat([plan.rocs, zero.long()], 1),
    )
    input_ids = torch.tensor([[5, 6, 7, 8]])
    for form in FORMS.values():
        outputs = []
        for p in (plan, more):
            sites = router.lanes.bank.sites_of(p, routed.source)
            with form(router.model, sites, False).bind(p, router.planner.method.gate)([0]), torch.no_grad():
                outputs.append(router.model(input_ids).logits)
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_generates(
    kind: str, dtype: torch.dtype, shared_pool: Shared, tokenizer: Any, embedder: Any, tiny: Any
) -> None:
    _, pool = shared_pool(kind)
    router = HiLoRA.from_pretrained(tiny.model(kind, dtype), pool, tokenizer=tokenizer, embedder=embedder)
    assert len(router.generate(PROMPTS, max_new_tokens=3)) == len(PROMPTS)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_rows_that_beams_multiply_follow_their_prompt(build: Any, kind: str) -> None:
    router = build(kind, "hilora")
    together = router.generate(PROMPTS, max_new_tokens=5, num_beams=3, num_return_sequences=2)
    assert len(together) == 2 * len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = router.generate(prompt, max_new_tokens=5, num_beams=3, num_return_sequences=2)
        assert [a.text for a in alone] == [a.text for a in together[2 * i : 2 * i + 2]]


def test_several_samples_of_a_prompt_differ_and_come_back(build: Any) -> None:
    router = build("llama", "hilora")
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "num_return_sequences": 3}
    first = [a.text for a in router.generate(PROMPTS[:2], seed=1, **options)]
    assert first == [a.text for a in router.generate(PROMPTS[:2], seed=1, **options)]
    assert len(set(first[:3])) > 1
    assert first != [a.text for a in router.generate(PROMPTS[:2], seed=2, **options)]


def test_gs_uses_every_roc_and_hilora_the_share_gamma(build: Any) -> None:
    for choice in (c for a in build("llama", "hilora-gs").generate(PROMPTS, max_new_tokens=1) for c in a.choices):
        assert choice.rocs == choice.rank
    for answer in build("llama", "hilora", gamma=0.5).generate(PROMPTS, max_new_tokens=1):
        ranks = sum(choice.rank for choice in answer.choices)
        assert sum(choice.rocs for choice in answer.choices) == max(1, int(0.5 * ranks + 0.5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_sites_that_share_an_input_give_what_each_gives_alone(
    build: Any, kind: str, method: str, monkeypatch: Any
) -> None:
    options = {"hilora-roc": {"k": 5}, "arrow": {"k": 2}, "lego": {"k": 6}}.get(method, {})
    router = build(kind, method, **options)
    together = [logits(router, method, PROMPTS, LABELS) for _ in range(2)]
    monkeypatch.setattr("hilora.engine.attachment._groups", lambda sites: [[name] for name in sites])
    apart = logits(router, method, PROMPTS, LABELS)
    torch.testing.assert_close(together[0], apart)
    assert torch.equal(*together)


def test_prompts_that_no_adapter_fits_stay_unanswered_and_the_others_are_answered_as_ever(build: Any) -> None:
    router = build("llama", "hilora-plus", fallback="abstain")
    posterior = router.planner.method.router
    routed = router.planner.route(PROMPTS)
    posterior.seen_above_ = float(routed.route.leads.median())  # half of them are strangers now
    ever = build("llama", "hilora-plus", fallback="none").generate(PROMPTS, max_new_tokens=4)
    found = router.generate(PROMPTS, max_new_tokens=4)
    silent = [answer.finish_reason == "abstain" for answer in found]
    assert 0 < sum(silent) < len(PROMPTS)
    for answer, same, is_silent in zip(found, ever, silent, strict=True):
        if is_silent:
            assert (answer.text, answer.choices, answer.completion_tokens) == ("", (), 0)
            assert "no adapter fits: not answered" in answer.note
        else:
            assert (answer.text, answer.rocs, answer.finish_reason) == (same.text, same.rocs, same.finish_reason)
    posterior.seen_above_ = float("inf")
    assert {answer.finish_reason for answer in router.generate(PROMPTS, max_new_tokens=4)} == {"abstain"}
    base = build("llama", "hilora-plus", fallback="base")
    base.planner.method.router.seen_above_ = float("inf")
    answers = base.generate(PROMPTS, max_new_tokens=4)
    assert [a.text for a in answers] == [a.text for a in build("llama", "base").generate(PROMPTS, max_new_tokens=4)]
    assert all("the base model answered alone" in answer.note for answer in answers)


@pytest.mark.parametrize("method", ["hilora", "arrow", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_come_and_go_answer_as_a_batch_that_stays_together(
    build: Any, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = build(kind, method)
    router.lanes.tokenizer = router.tokenizer = copy.deepcopy(router.tokenizer)
    router.tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # stop texts need tokens that join without spaces
    text = "".join(answer.text for answer in router.generate(PROMPTS, max_new_tokens=16))
    stops = sorted(Counter(c for c in text if c.isalnum() and c not in "padeosunk"), key=text.count)[-2:]
    seen: list[tuple[int, int]] = []  # (rows, tokens of each at most) of every forward pass
    original = Forward.__call__

    def forward(self: Forward, batch: Batch, parts: Any) -> Any:
        seen.append((len(parts), max(map(len, parts))))
        return original(self, batch, parts)

    monkeypatch.setattr(Forward, "__call__", forward)
    monkeypatch.setattr("hilora.engine.rectangle.ROOM", 3)  # so that a buffer fills up in between
    options: list[dict[str, Any]] = [
        {},
        {"stop": stops},
        {"do_sample": True, "temperature": 1.5, "seed": 5, "stop": stops, "num_return_sequences": 2},
        {"min_new_tokens": 8, "stop": stops[:1]},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": [7]},
    ]
    for more in options:
        with monkeypatch.context() as closed:
            closed.setattr("hilora.engine.dispatch.can_join", lambda *_: False)
            expected = router.generate(PROMPTS, max_new_tokens=16, **more)
            assert not seen
        for at_once, tokens, share in ((32, 4096, 8), (32, 1, 8), (3, 16, 1), (2, 5, 100)):
            monkeypatch.setattr("hilora.engine.loop.SLICE", tokens)  # prompts are read in slices of so many
            monkeypatch.setattr("hilora.engine.loop.SHARE", share)
            assert router.generate(PROMPTS, max_new_tokens=16, batch_size=at_once, **more) == expected
            if kind == "t5":
                assert not seen
                continue
            rows = at_once * more.get("num_return_sequences", 1)
            assert max(count for count, _ in seen) <= rows
            assert tokens == 4096 or all(count * each <= tokens for count, each in seen if each > 1)
            seen.clear()
