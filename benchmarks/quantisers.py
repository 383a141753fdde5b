"""Which kinds of quantised base take adapters: each on a tiny random base, put beside the same base in fp32.

    pip install 'hilora[quantize]' torchao optimum-quanto optimum gptqmodel      # those that are missing are said so
    python benchmarks/quantisers.py --json benchmarks/quantisers.jsonl --page docs/gpus.md

A kind works if the base loads, answers, and adapters change what it says. `alone` is whether prompts in one batch are
answered as each by itself. `far` is how far its logits, with adapters, are from those in fp32, by the norm of these;
AWQ's codes are random (its own quantiser wants more than a tiny base), so that nothing can be said of that.
"""

import argparse
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lines import Line, placed, write
from made import random_pool
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig, LlamaConfig, LlamaForCausalLM

from hilora import HiLoRA, Planner, get_method
from hilora.base.embed import Embedder, describe_embedder
from hilora.base.models import first_line, load_base, resolve_base
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.pool.memory import Memory

PROMPTS = ["A short question.", "Translate this: a house by the sea.", "Is it true that one and one are two?"]
GROUP = 32
BEGIN, END = "<!-- from benchmarks/quantisers.jsonl -->\n", "<!-- end of kinds -->"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tiny_base(folder: Path) -> str:
    """A random base of widths that every kind takes."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("smollm2-135m"), trust_remote_code=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def of_torchao(name: str, **options: Any) -> Callable[[str, Path], tuple[str, Any]]:
    """A kind of torchao's, by the name of its config."""

    def made(base: str, folder: Path) -> tuple[str, Any]:
        import torchao.quantization
        from transformers import TorchAoConfig

        return base, TorchAoConfig(getattr(torchao.quantization, name)(**options))

    return made


def gptq(base: str, folder: Path) -> tuple[str, Any]:
    """Quantised here, by gptqmodel, and saved."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    how = GPTQConfig(bits=4, group_size=GROUP, dataset=PROMPTS * 8, tokenizer=tokenizer, backend="torch")
    model: Any = AutoModelForCausalLM.from_pretrained(base, device_map=DEVICE, quantization_config=how)
    model.save_pretrained(folder / "gptq")
    tokenizer.save_pretrained(folder / "gptq")
    return str(folder / "gptq"), None


def awq(base: str, folder: Path) -> tuple[str, Any]:
    """Random codes in AWQ's layout."""
    shutil.copytree(base, folder / "awq")
    drawn, found = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for key, value in load_file(folder / "awq" / "model.safetensors").items():
        if "layers" not in key or value.ndim < 2:
            found[key] = value.half()
            continue
        (out, width), name = value.shape, key.removesuffix(".weight")
        codes = torch.randint(-(2**31), 2**31 - 1, (width, out // 8), generator=drawn)
        found[f"{name}.qweight"] = codes.to(torch.int32)
        found[f"{name}.qzeros"] = torch.full((width // GROUP, out // 8), -2004318072, dtype=torch.int32)
        found[f"{name}.scales"] = (torch.rand(width // GROUP, out, generator=drawn) * 0.02 + 0.01).half()
    save_file(found, folder / "awq" / "model.safetensors", metadata={"format": "pt"})
    path = folder / "awq" / "config.json"
    says = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float16", "quantization_config": says}))
    return str(folder / "awq"), None


def of_quanto(weights: str) -> Callable[[str, Path], tuple[str, Any]]:
    """A kind of quanto's."""
    return lambda base, folder: (base, {"quant_method": "quanto", "weights": weights})


KINDS: dict[str, tuple[str, Callable[[str, Path], tuple[str, Any]]]] = {
    "4bit": ("bitsandbytes", lambda base, folder: (base, "4bit")),
    "8bit": ("bitsandbytes", lambda base, folder: (base, "8bit")),
    "int8, weights": ("torchao", of_torchao("Int8WeightOnlyConfig")),
    "int8, weights and activations": ("torchao", of_torchao("Int8DynamicActivationInt8WeightConfig")),
    "int4, weights": ("torchao", of_torchao("Int4WeightOnlyConfig", group_size=GROUP)),
    "fp8, weights": ("torchao", of_torchao("Float8WeightOnlyConfig")),
    "fp8, weights and activations": ("torchao", of_torchao("Float8DynamicActivationFloat8WeightConfig")),
    "int8": ("optimum-quanto", of_quanto("int8")),
    "int4": ("optimum-quanto", of_quanto("int4")),
    "GPTQ, 4 bits": ("gptqmodel", gptq),
    "AWQ, 4 bits": ("gptqmodel", awq),
}
"""Package, and how a base of the kind is made: (base, folder) -> base and `quantization_config`."""


def tried(kind: str, base: str, plain: HiLoRA, folder: Path) -> Line:
    """What comes of a kind."""
    package, made = KINDS[kind]
    line: Line = {"package": package, "kind": kind, "device": DEVICE}
    try:
        line["version"] = version(package)
        name, how = made(base, folder)
        model, tokenizer = load_base(name, dtype="fp32", device_map=DEVICE, quantization_config=how)
        router = HiLoRA(model, tokenizer, Planner(plain.planner.pool, get_method("hilora-gs"), Embedder(), Memory()))
        together = [answer.text for answer in router.generate(PROMPTS, max_new_tokens=4)]
        alone = [router.generate(prompt, max_new_tokens=4)[0].text for prompt in PROMPTS]
        got, bare, want = logits(router, True), logits(router, False), logits(plain, True)
        site = model.get_submodule(next(iter(plain.planner.pool.base.sites)))
        return line | {
            "module": type(site).__name__,
            "works": not torch.equal(got, bare),
            "alone": together == alone,
            "batches": router.batching.value,
            "far": round(float((got - want).norm() / want.norm()), 3),
        }
    except Exception as error:  # noqa: BLE001  # it is written down
        return line | {"works": False, "why": first_line(error).replace(str(folder), "...")[:200]}


def logits(router: HiLoRA, served: bool) -> torch.Tensor:
    """Of a prompt, (token, vocabulary), with its adapters or without any."""
    ids = router.tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"].to(router.model.device)
    with torch.inference_mode():
        if not served:
            return router.model(ids).logits[0].float().cpu()
        with router.attached(router.planner.route(PROMPTS[1:2]), [0]):
            return router.model(ids).logits[0].float().cpu()


def measure(kinds: list[str]) -> Iterator[Line]:
    """A line of each kind."""
    yield setup("benchmarks/quantisers.py", device=DEVICE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = tiny_base(folder / "base")
        pool = random_pool(folder, base, 4, 4, ("q_proj", "v_proj", "down_proj"), describe_embedder(Embedder()))
        model, tokenizer = load_base(base, dtype="fp32", device_map=DEVICE)
        plain = HiLoRA(model, tokenizer, Planner(pool, get_method("hilora-gs"), Embedder(), Memory()))
        for kind in kinds:
            yield tried(kind, base, plain, folder)


def table(lines: list[Line]) -> str:
    """What works."""
    rows = [
        [
            f"{line['package']} {line.get('version', '')}",
            line["kind"],
            "works" if line["works"] else "no",
            line.get("module", "") or line["why"].split("cannot be loaded: ")[-1].split(". ")[0],
            {True: "yes", False: "not always"}.get(line.get("alone"), "-"),
            "-" if line["kind"].startswith("AWQ") or "far" not in line else f"{line['far']:.3f}",
        ]
        for line in lines
        if "kind" in line
    ]
    return markdown_table(
        ["package", "kind", lines[-1]["device"].upper(), "module, or why not", "batch as alone", "far"], rows
    )


def on_page(page: str, lines: list[Line]) -> str:
    """The page with the table of these lines in its place."""
    return placed(page, BEGIN, END, table(lines))


def main() -> None:
    """Try, and make the page's table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="none: the table alone")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.kinds:
        write(args.json, measure(args.kinds))
    lines = [json.loads(line) for line in args.json.read_text().splitlines()]
    print(table(lines))
    if args.page:
        args.page.write_text(on_page(args.page.read_text(), lines))


if __name__ == "__main__":
    main()
