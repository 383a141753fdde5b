"""What hilora costs beside the base model, by counting: arithmetic, bytes moved, calls of kernels.

    python benchmarks/cost.py                          # cost.md, from cost.json and throughput.jsonl
    python benchmarks/cost.py --measure                # this machine's numbers into cost.json first

Each part of a forward pass takes the longest of its arithmetic at the device's peak, its bytes at the device's
bandwidth; kernels that follow one another add up, each with the time of a call. The same count is compared with the
ratios that `benchmarks/throughput.py` measured, and then made for Llama-2-7B with 10,000 adapters on one H100
(data sheet, SXM: 989 Tflop/s bf16 dense, 3.35 TB/s; 4 us for a call from Python, none of it hidden).
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from hilora.bench.rounds import stopwatch
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

HERE = Path(__file__).parent
BYTES = 2  # of bf16


@dataclass(frozen=True)
class Part:
    """Some work: operations, bytes read or written, kernels called."""

    what: str
    flops: float
    bytes: float
    calls: int


@dataclass(frozen=True)
class Device:
    """How fast a device is: operations and bytes a second, seconds of a call."""

    name: str
    flops: float
    bandwidth: float
    call: float

    def seconds(self, parts: Iterable[Part]) -> float:
        """Of parts, one after another."""
        return sum(max(p.flops / self.flops, p.bytes / self.bandwidth) + p.calls * self.call for p in parts)


H100 = Device("H100", 989e12, 3.35e12, 4e-6)


@dataclass(frozen=True)
class Model:
    """A decoder with gated feed-forward blocks. `adapted`: (in, out) of the adapted sites of a layer."""

    name: str
    layers: int
    width: int
    inner: int
    kv: int
    vocabulary: int
    adapted: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        """Of one layer's linear modules."""
        return self.width * (2 * self.width + 2 * self.kv + 3 * self.inner)


SMOL = Model("SmolLM2-135M", 30, 576, 1536, 192, 49152, ((576, 576), (576, 192)))
LLAMA = Model("Llama-2-7B", 32, 4096, 11008, 4096, 32000, ((4096, 4096), (4096, 4096)))


@dataclass(frozen=True)
class Load:
    """A batch: prompts of some tokens, distinct adapters of a rank in it, adapters registered."""

    batch: int
    prompt: int
    distinct: int
    rank: int = 8
    registered: int = 52
    embedder: int = 10_600_000


def base_pass(model: Model, batch: int, tokens: int, context: int) -> list[Part]:
    """One forward pass of `tokens` new tokens in each row, over `context` tokens."""
    new = batch * tokens
    linear = Part("linear", 2 * model.weights * new, BYTES * (model.weights + 9 * model.width * new), 7)
    attention = Part(
        "attention",
        4 * model.width * new * context,
        BYTES * 2 * model.kv * batch * context + BYTES * 3 * model.width * new,
        4,
    )
    rest = Part("norms, rotations, activations", 0, BYTES * (10 * model.width + 4 * model.inner) * new, 25)
    head = Part("head", 2 * model.width * model.vocabulary * batch, BYTES * model.width * model.vocabulary, 3)
    return [linear, attention, rest] * model.layers + [head]


def delta_pass(model: Model, load: Load, tokens: int) -> list[Part]:
    """What the adapters of the batch add to it: projections, gates, sums; sites of a layer share the first two."""
    new, rocs = load.batch * tokens, load.distinct * load.rank
    pairs = load.distinct * load.rank * (load.rank - 1) // 2
    parts = []
    joined = rocs * len(model.adapted)
    width = model.adapted[0][0]
    parts.append(Part("down", 2 * width * joined * new, BYTES * (width * joined + (width + joined) * new), 2))
    for _, out in model.adapted:
        gate = BYTES * (4 * pairs + 8 * rocs) * new
        parts.append(Part("gate", 2 * rocs * pairs * new, gate, 8))
        parts.append(Part("up", 2 * out * rocs * new, BYTES * (out * rocs + (2 * out + rocs) * new), 1))
    return parts * model.layers


def route_pass(load: Load, dim: int = 384) -> list[Part]:
    """Embedding the prompts, and the distances to all adapters."""
    words = load.batch * load.prompt
    embed = Part("embedding", 2 * load.embedder * words, BYTES * load.embedder, 6 * 15)
    select = Part("selection", 2 * dim * load.registered * load.batch, 4 * dim * load.registered, 20)
    return [embed, select]


def ratios(model: Model, load: Load, device: Device, new_tokens: int) -> dict[str, float]:
    """Throughput with hilora over that of the base model: the first token, a later one, a whole answer; and parts."""
    context = load.prompt + new_tokens // 2
    base = [device.seconds(base_pass(model, load.batch, t, c)) for t, c in ((load.prompt, load.prompt), (1, context))]
    delta = [device.seconds(delta_pass(model, load, t)) for t in (load.prompt, 1)]
    route = device.seconds(route_pass(load))
    whole = base[0] + (new_tokens - 1) * base[1]
    more = delta[0] + (new_tokens - 1) * delta[1] + route
    return {
        "prefill": base[0] / (base[0] + delta[0] + route),
        "decode": base[1] / (base[1] + delta[1]),
        "whole": whole / (whole + more),
        "route": route / whole,
        "seconds": whole,
    }


def median_seconds(call: Callable[[], object], times: int) -> float:
    """Of several calls."""
    timed = stopwatch(torch.device("cpu"))
    return statistics.median(timed(call) for _ in range(times))


def measured_device() -> dict[str, float]:
    """This machine: a bf16 product as large as those of a model, reading a large tensor, a call on few numbers."""
    x, w = torch.randn(2048, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
    large, small = torch.randn(2**27), torch.randn(8)
    product = median_seconds(lambda: torch.nn.functional.linear(x, w), 51)
    return {
        "flops": 2 * x.numel() * len(w) / product,
        "bandwidth": 4 * large.numel() / median_seconds(large.sum, 11),
        "call": median_seconds(lambda: small.mul(2.0), 2001),
    }


def page(here: Device, lines: list[dict[str, object]]) -> str:
    """cost.md."""
    checked = []
    for line in lines:
        if line["base"] != "smollm2-135m" or tuple(line["modules"]) != ("q_proj", "v_proj"):
            continue
        load = Load(line["batch"], round(line["tokens"]["prompt"] / line["batch"]), line["distinct"], line["rank"])
        found = ratios(SMOL, load, here, line["new_tokens"])
        if "pinned_over_base" not in line:
            continue  # routed freely: what a row uses is not known beforehand
        seen = {part: line[part]["pinned_over_base"] for part in ("prefill", "decode")} | {
            "whole": line["pinned_over_base"]
        }
        cells = [f"{found[part]:.2f} / {seen[part]:.2f}" for part in ("prefill", "decode", "whole")]
        checked.append((line["case"], *cells))
    wide = []
    for batch, distinct in ((1, 1), (8, 8), (32, 8), (32, 32), (64, 64)):
        for rank in (8, 16):
            load = Load(batch, 512, distinct, rank, registered=10_000)
            found = ratios(LLAMA, load, H100, 128)
            cells = [f"{found[part]:.3f}" for part in ("prefill", "decode", "whole")]
            free = ratios(LLAMA, load, Device("graphs", H100.flops, H100.bandwidth, 0.0), 128)
            wide.append(
                (str(batch), str(distinct), str(rank), *cells, f"{free['whole']:.3f}", f"{found['seconds']:.2f}")
            )
    own = delta_pass(LLAMA, Load(32, 512, 8), 1)
    moved = sum(part.bytes for part in own) / sum(part.bytes for part in base_pass(LLAMA, 32, 1, 576))
    return f"""# What hilora costs, counted

Made by `python benchmarks/cost.py`. Each part of a forward pass takes the longer of its arithmetic and its bytes, and
the time of its calls; throughput of hilora over that of the base model.

## Against what was measured here ({here.name})

{here.flops / 1e9:.0f} Gflop/s in bf16 products, {here.bandwidth / 1e9:.1f} GB/s, {here.call * 1e6:.1f} us a call
(`cost.json`); measured ratios are those of `throughput.jsonl`. Counted / measured:

{markdown_table(["case", "prefill", "decode", "whole"], checked)}

## {LLAMA.name}, 10,000 adapters, one {H100.name}

Prompts of 512 tokens, answers of 128, adapters at q and v in all {LLAMA.layers} layers. A decoding step with 8
adapters and 32 rows moves {100 * moved:.1f} % more bytes than the base model's. "Without calls" is what CUDA graphs
would leave.

{markdown_table(["batch", "distinct", "rank", "prefill", "decode", "whole", "whole, without calls", "base, s"], wide)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure this machine first")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    numbers = HERE / "cost.json"
    if args.measure:
        numbers.write_text(json.dumps(measured_device(), indent=1) + "\n")
    here = Device("two cores", **json.loads(numbers.read_text()))
    lines = read_lines(HERE / "throughput.jsonl")
    (args.out / "cost.md").write_text(page(here, lines))


if __name__ == "__main__":
    main()
