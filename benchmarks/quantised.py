"""A base in 8 and in 4 bits against itself in fp32: are the adapters' answers as likely as they were?

    pip install 'hilora[quantize]'
    python benchmarks/quantised.py --data FLAN_MINI/val --json benchmarks/quantised.jsonl
    python benchmarks/quantised.py --json benchmarks/quantised.jsonl --page docs/gpus.md     # the table alone

A row of the second half of each validation file is put to the base model alone, to the adapter of its task and to
hilora; routes are made once, and are the same for every way to load the base. Each prompt runs alone. The right
answer's tokens are given, and the logits that predict them are compared with those of fp32.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lines import Line, placed, write
from torch import Tensor

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.embed import Embedder
from hilora.base.models import load_base
from hilora.evaluate.likelihood import Scored, encode_pairs
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table

WHOLE = "fp32"
LOADINGS: dict[str, dict[str, Any]] = {
    WHOLE: {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "8bit": {"quantization_config": "8bit"},
    "4bit": {"quantization_config": "4bit", "dtype": "bf16"},
}
METHODS = ("base", "oracle", "hilora")
BEGIN, END = "<!-- from benchmarks/quantised.jsonl -->\n", "<!-- end -->"


def measure(data: Path, pool: Pool, per_task: int) -> Iterator[Line]:
    """A line of each row, method and way to load the base."""
    rows = choose_rows(load_rows(data), part="second", per_task=per_task, tasks=pool.names)
    models = {name: load_base(pool.base.name, device_map="cpu", **how) for name, how in LOADINGS.items()}
    yield setup("benchmarks/quantised.py", rows=len(rows), bitsandbytes=_version(), pool=pool.path.name)
    for method in METHODS:
        planner = Planner(pool, get_method(method), Embedder())
        routers = {name: HiLoRA(model, tokenizer, planner) for name, (model, tokenizer) in models.items()}
        routed = planner.route([row.inputs for row in rows], labels=[row.task for row in rows])
        pairs = [(row.inputs, row.targets) for row in rows]
        items = encode_pairs(routers[WHOLE], pairs, [row.inputs for row in rows])
        for place, (row, item) in enumerate(zip(rows, items, strict=True)):
            found = {name: log_probs(router, routed, place, item) for name, router in routers.items()}
            for name, got in found.items():
                yield {"id": row.id, "task": row.task, "method": method, "base": name} | compare(
                    got, found[WHOLE], torch.tensor(item.targets)
                )


def _version() -> str:
    from importlib.metadata import version

    return version("bitsandbytes")


def log_probs(router: HiLoRA, routed: Any, place: int, item: Scored) -> Tensor:
    """fp32 (target, vocabulary): what the model expects at each token of the right answer."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(router.attached(routed, [place]))
        logits = router.model(torch.tensor([item.ids])).logits[0, -len(item.targets) :]
    return logits.float().log_softmax(-1)


def compare(got: Tensor, want: Tensor, targets: Tensor) -> Line:
    """Means over an answer's tokens: log-probability, divergence from fp32, share of the same likeliest token."""
    return {
        "log_prob": round(float(got.gather(1, targets[:, None]).mean()), 4),
        "divergence": round(float((want.exp() * (want - got)).sum(-1).mean()), 5),
        "same": round(float((got.argmax(-1) == want.argmax(-1)).float().mean()), 4),
    }


def table(lines: list[Line]) -> str:
    """Means over rows, by method and way to load the base."""
    heading = ["method", "base", "log-probability of a right token", "divergence from fp32", "same likeliest token"]
    found = []
    for method in METHODS:
        for name in LOADINGS:
            rows = [line for line in lines if line.get("method") == method and line["base"] == name]
            means = [sum(row[key] for row in rows) / len(rows) for key in ("log_prob", "divergence", "same")]
            found.append([method, name, f"{means[0]:.3f}", f"{means[1]:.3f}", f"{100 * means[2]:.1f} %"])
    return markdown_table(heading, found)


def on_page(page: str, lines: list[Line]) -> str:
    """The page with the table of these lines in its place."""
    return placed(page, BEGIN, END, table(lines))


def main() -> None:
    """Measure if there is data, and make the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--per-task", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.data:
        write(args.json, measure(args.data, Pool.open(args.pool), args.per_task))
    lines = [json.loads(line) for line in args.json.read_text().splitlines()]
    print(table(lines))
    if args.page:
        args.page.write_text(on_page(args.page.read_text(), lines))


if __name__ == "__main__":
    main()
