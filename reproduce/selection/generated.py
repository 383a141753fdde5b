"""Whether an adapter can be registered by text that it generates itself, instead of samples.

    python reproduce/selection/generated.py --data DATA

DATA holds flan_mini/val; the second halves are the test prompts. Each adapter of pools/flan-mini writes 20 texts,
sampled at temperature 1: with the user's turn left open, so that it goes on as a user would ("open"), or asked for an
example of what it was trained for ("asked"); "base" is the base model with the turn open, for comparison.

Numbers go to generated.json beside this file, tables to generated.md and the screen. Without --data the tables are
made again from the numbers. About ten minutes on two cores.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main
from unsampled import compare

from hilora import HiLoRA, Pool, get_method
from hilora.base.embed import Embedder
from hilora.base.models import load_base
from hilora.base.prompts import encode_prompts
from hilora.evaluate.routing import look_at
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import entry_lines
from hilora.planner import Planner
from hilora.route.features import Features, join

HERE = Path(__file__).parent
POOL = Path("pools/flan-mini")
TEXTS = 20
TOKENS = 48
BATCH = 64
REQUEST = "Write an example of the kind of input that you were trained to answer."
MARK = "@@@"
WAYS = {
    "20 samples": "of its training data",
    "open": "20 texts that the adapter writes in the user's place",
    "asked": "20 texts that it writes when asked for an example",
    "base": "20 texts of the base model in the user's place",
}


def write_texts(router: HiLoRA, prefix: Sequence[int], names: Sequence[str], label: str) -> dict[str, list[str]]:
    """Name -> the texts that its adapter writes after a prefix of token ids."""
    planner = router.planner
    each = [name for name in names for _ in range(TEXTS)]
    numbered = [f"{label} {name} {n}" for name in names for n in range(TEXTS)]  # each text has its own random stream
    labels = each if planner.method.name == "oracle" else None
    routed = planner.route(numbered, labels=labels)
    texts: dict[str, list[str]] = {name: [] for name in names}
    for start in range(0, len(each), BATCH):
        rows = range(start, min(start + BATCH, len(each)))
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": True, "temperature": 1.0}
        answers = router.answer_batch(routed, rows, [list(prefix)] * len(rows), **options)
        for row, (answer,) in zip(rows, answers, strict=True):
            texts[each[row]].append(answer.text.strip() or "-")
        print(f"{label}: {rows.stop} of {len(each)}", file=sys.stderr, flush=True)
    return texts


def open_turn(tokenizer: Any) -> list[int]:
    """Token ids of a chat up to where the user's words begin."""
    if not tokenizer.chat_template:
        return [tokenizer.bos_token_id or tokenizer.eos_token_id]
    text = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False).split(MARK)[0]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All numbers."""
    pool, embedder = Pool.open(POOL), Embedder(embedder_name)
    names = pool.names
    model, tokenizer = load_base(pool.base.name)
    oracle, base = (HiLoRA(model, tokenizer, Planner(pool, get_method(m), embedder)) for m in ("oracle", "base"))
    (request,) = encode_prompts([REQUEST], tokenizer)
    opened = open_turn(tokenizer)
    written = {
        "open": write_texts(oracle, opened, names, "open"),
        "asked": write_texts(oracle, request, names, "asked"),
        "base": write_texts(base, opened, names, "base"),
    }
    known: dict[str, list[Features]] = {"20 samples": pool.samples()}
    known |= {way: [look_at(texts[name], embedder, True) for name in names] for way, texts in written.items()}
    test: dict[str, list[str]] = {name: [] for name in names}
    for row in choose_rows([r for r in load_rows(data / "flan_mini" / "val") if r.task in test], part="second"):
        test[row.task].append(row.inputs)
    texts = join([look_at(test[name], embedder, True) for name in names])
    owner = torch.tensor([i for i, name in enumerate(names) for _ in test[name]])
    header = setup(
        "reproduce/selection/generated.py",
        embedder=embedder_name,
        dtype=str(model.dtype).removeprefix("torch."),
        tasks=len(names),
        prompts=len(owner),
        texts=TEXTS,
        tokens=TOKENS,
        seed=0,
    )
    return {"setup": header} | compare(known, texts, owner)


def report(result: dict[str, Any]) -> str:
    """The page."""
    methods = list(next(iter(result["everyone"].values())))
    setup_ = result["setup"]

    def table(part: str) -> str:
        rows = [
            (f"**{way}** {WAYS[way]}", *(f"{100 * each[m][0]:.1f} / {100 * each[m][1]:.1f}" for m in methods))
            for way, each in result[part].items()
        ]
        return markdown_table(["known by", *methods], rows)

    return f"""# Adapters known by what they write themselves

Made by `python reproduce/selection/generated.py --data DATA`; numbers in `generated.json`. Percent of
{setup_["prompts"]} test prompts of the {setup_["tasks"]} tasks of `pools/flan-mini` whose own adapter is best / among
the three best.

## All adapters known in this way

{table("everyone")}

## One adapter known in this way, all others by 20 samples

{table("alone")}
"""


def main() -> None:
    numbers_main(__doc__, HERE / "generated", measure, report, partial(entry_lines, depth=2))


if __name__ == "__main__":
    main()
