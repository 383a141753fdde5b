"""Laws of quantised bases: the same base to a pool, near answers, and nothing that is asked for is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM, QuantoConfig

from hilora import HiLoRA, Pool
from hilora.base.fingerprint import describe_base, describe_model
from hilora.base.models import load_base
from hilora.base.modules import is_plain, placements
from hilora.base.quantised import BITS, loading, quantisation, quantised_as
from hilora.engine.packed import pack_weights
from hilora.errors import InputError, MismatchError, ModelError, UnknownNameError

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211"]


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> str:
    """A tiny base on disk, of the widths that bitsandbytes asks for."""
    return make_base(tmp_path / "base", tiny)


def make_base(folder: Path, tiny: Any, seed: int = 0) -> str:
    """A random base with its tokenizer."""
    tokenizer = tiny.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, initializer_range=0.1, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- what is asked for --------------------------------------------------------------------------------


def test_names_are_transformers_configs_that_compute_in_the_models_dtype() -> None:
    four = quantisation("4bit", torch.bfloat16)
    assert four.load_in_4bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert quantisation("8bit", torch.float32).load_in_8bit
    given = BitsAndBytesConfig(load_in_4bit=True)
    assert quantisation(given, torch.float32) is given
    assert quantisation({"load_in_4bit": True}, torch.float32).to_dict() == given.to_dict()
    assert isinstance(quantisation({"quant_method": "quanto", "weights": "int8"}, torch.float32), QuantoConfig)


def test_eight_bits_are_multiplied_in_fp16_unless_another_dtype_is_asked_for() -> None:
    usual = torch.bfloat16
    assert [loading(given, None, usual)[0] for given in (None, "4bit", "8bit")] == [usual, usual, torch.float16]
    assert loading("8bit", torch.float32, usual)[0] == torch.float32
    assert loading(None, None, usual)[1] == {}


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ("4bits", UnknownNameError, "Did you mean '4bit'"),
        ({"quant_method": "bitsandbites"}, UnknownNameError, "method of quantisation"),
        (4, InputError, "got 4"),
        (BitsAndBytesConfig(), InputError, "quantises nothing"),
        ({}, InputError, "quantises nothing"),
        (QuantoConfig(weights="int4"), InputError, "inference_mode"),
    ],
)
def test_what_is_no_quantisation_is_refused_before_anything_loads(
    given: Any, kind: type[Exception], told: str, folder: str
) -> None:
    with pytest.raises(kind, match=told) as caught:
        load_base(folder, quantization_config=given)
    assert "\n" not in str(caught.value)


def test_a_base_that_comes_quantised_is_not_quantised_again(folder: str) -> None:
    config = Path(folder) / "config.json"
    said = '"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}'
    config.write_text(config.read_text().replace("{", "{" + said + ",", 1))
    with pytest.raises(ModelError, match="comes quantised"):
        load_base(folder, quantization_config="8bit")


def test_how_to_load_a_loaded_base_is_refused(
    shared_pool: Callable[[str], tuple[Any, Pool]], tokenizer: Any, embedder: Any
) -> None:
    model, pool = shared_pool("llama")
    for option, value in {"quantization_config": "4bit", "dtype": "fp32", "device_map": "cpu"}.items():
        with pytest.raises(InputError, match=f"{option} is for a base that is loaded here"):
            HiLoRA.from_pretrained(model, pool, tokenizer=tokenizer, embedder=embedder, **{option: value})


def test_a_package_that_is_missing_is_named(folder: str) -> None:
    with pytest.raises(ModelError, match="installed") as caught:  # no accelerator, or not the package: either way
        load_base(folder, quantization_config=FineGrainedFP8Config(), device_map="cpu")
    assert "\n" not in str(caught.value)


# --- what a pool makes of it --------------------------------------------------------------------------


class Coded(Tensor):
    """Codes of a quantised weight that say they were fp32, as those of torchao and quanto do."""


def as_codes(module: nn.Linear, kind: str) -> None:
    """Put codes in the place of a weight."""
    if kind == "integers":
        codes = (module.weight * 40).round().to(torch.int8)
    elif kind == "floats of a byte":
        codes = (module.weight * 40).to(torch.float8_e4m3fn)
    else:
        codes = (module.weight.detach() * 40).as_subclass(Coded)
    module.weight = nn.Parameter(codes, requires_grad=False)


@pytest.mark.parametrize("kind", ["integers", "floats of a byte", "a tensor of its own kind"])
def test_codes_are_not_taken_for_weights(
    kind: str, folder: str, tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = describe_base(folder)
    for seed in (0, 1):
        if seed:
            make_base(Path(folder), tiny, seed)
        model, tokenizer = load_base(folder, dtype="bf16", device_map="cpu")
        for site in info.sites:
            as_codes(model.get_submodule(site), kind)
        if seed:
            with pytest.raises(MismatchError, match="other weights"):
                info.check_model(model, info.template)
            continue
        assert not any(is_plain(model.get_submodule(site).weight) for site in info.sites)
        assert set(placements(model).values()) == {(torch.device("cpu"), torch.bfloat16)}
        assert pack_weights(model, info.sites) == []
        info.check_model(model, info.template)
        assert describe_model(folder, model, tokenizer) == info  # by its files
    assert caplog.text == ""


class Other(nn.Module):
    """A quantised layer that is no linear module."""


def test_a_layer_that_takes_no_adapter_is_named(folder: str) -> None:
    info = describe_base(folder)
    model, _ = load_base(folder, dtype="fp32", device_map="cpu")
    site = next(iter(info.sites))
    model.set_submodule(site, Other())
    with pytest.raises(MismatchError, match="no such module"):
        info.check_model(model, info.template)
    model.config.quantization_config = {"quant_method": "hqq"}
    with pytest.raises(MismatchError, match=r"is a Other in this quantised model.*how wide.*bitsandbytes"):
        info.check_model(model, info.template)


class StandIn(nn.Module):
    """What GPTQ and AWQ put in the place of a linear module: its codes are buffers, and `weight` is no tensor."""

    weight = "dequantised where it is needed"

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = whole.in_features, whole.out_features
        scale = whole.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (whole.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scales.to(x.dtype))


def test_adapters_go_onto_what_stands_for_linear_modules(
    folder: str, tiny: Any, tmp_path: Path, embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, tokenizer = load_base(folder, dtype="fp32", device_map="cpu")
    pool = tiny.pool(tmp_path / "pool", "llama", whole, embedder)
    few, _ = load_base(folder, dtype="fp32", device_map="cpu")
    for site in pool.base.sites:
        if site != "lm_head":
            few.set_submodule(site, StandIn(few.get_submodule(site)))
    few.config.quantization_config = {"quant_method": "gptq"}
    plain, router = (
        HiLoRA.from_pretrained(each, pool, "hilora-gs", tokenizer=tokenizer, embedder=embedder, packed=True)
        for each in (whole, few)
    )
    assert said(caplog) == []  # the base of the pool, by its files
    assert placements(few) == placements(whole)
    for served in (True, False):
        got, want = (logits(each, served) for each in (router, plain))
        assert 0 < (got - want).norm() <= NEAR["8bit"] * want.norm()
    assert not torch.equal(logits(router, True), logits(router, False))
    answers = [answer.text for answer in router.generate(PROMPTS, max_new_tokens=4)]
    assert answers == [router.generate(prompt, max_new_tokens=4)[0].text for prompt in PROMPTS]


# --- with bitsandbytes --------------------------------------------------------------------------------

NEAR = {"4bit": 0.35, "8bit": 0.05}
"""How far logits may be from those of the unquantised base, by the norm of these: 16 levels, 256 levels."""


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes and its imports
def test_a_base_in_few_bits_serves_a_pool_of_the_whole_one(
    bits: str, folder: str, tiny: Any, tmp_path: Path, embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, tokenizer = load_base(folder, dtype="fp32", device_map="cpu")
    pool = tiny.pool(tmp_path / "pool", "llama", whole, embedder)
    router = HiLoRA.from_pretrained(
        folder, pool, "hilora-gs", embedder=embedder, device_map="cpu", dtype="fp32", quantization_config=bits
    )
    few = router.model
    assert said(caplog) == []  # it is the pool's base, by its files
    assert quantised_as(whole) is None
    assert quantised_as(few) is not None
    assert not is_plain(few.get_submodule(next(iter(pool.base.sites))).weight)
    assert describe_model(pool.base.name, few, tokenizer) == pool.base
    plain = HiLoRA.from_pretrained(whole, pool, "hilora-gs", tokenizer=tokenizer, embedder=embedder)
    for served in (True, False):
        got, want = (logits(each, served) for each in (router, plain))
        assert 0 < (got - want).norm() <= NEAR[bits] * want.norm()
    assert not torch.equal(logits(router, True), logits(router, False))
    before = [parameter.clone() for parameter in few.parameters()]
    answers = [answer.text for answer in router.generate(PROMPTS, max_new_tokens=4)]
    assert answers == [router.generate(prompt, max_new_tokens=4)[0].text for prompt in PROMPTS]
    assert all(map(torch.equal, before, few.parameters()))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our warnings; bitsandbytes has some of its own."""
    return [record.message for record in caplog.records if record.name.startswith("hilora")]


def logits(router: HiLoRA, served: bool) -> Tensor:
    """Of a few tokens, (token, vocabulary), with the adapters of a prompt or without any."""
    ids = torch.tensor([[30, 31, 32, 40, 50]])
    with torch.inference_mode():
        if not served:
            return router.model(ids).logits[0]
        with router.attached(router.planner.route(PROMPTS[:1]), [0]):
            return router.model(ids).logits[0]


@pytest.mark.filterwarnings("ignore")
def test_a_base_saved_in_four_bits_is_known_by_its_files(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load_base(folder, dtype="fp32", device_map="cpu", quantization_config="4bit")
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    info = describe_base(str(saved))
    assert "cannot be sampled" in caplog.text
    assert info.sketch == {}
    assert info.files
    caplog.clear()
    info.check_model(load_base(str(saved), dtype="fp32", device_map="cpu")[0], info.template)
    assert said(caplog) == []
    describe_base(folder).check_model(load_base(str(saved), dtype="fp32", device_map="cpu")[0], info.template)
    assert "cannot check that this model is" in caplog.text  # codes and weights cannot be compared
    weights = load_file(saved / "model.safetensors")
    spoilt = {key: value.flip(0) if key.endswith("q_proj.weight") else value for key, value in weights.items()}
    save_file(spoilt, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match="other weights"):
        info.check_model(load_base(str(saved), dtype="fp32", device_map="cpu")[0], info.template)
