"""Answers of prompts that come and go together, against each prompt alone: how many are the same, how near others.

    python benchmarks/same.py --json benchmarks/same.jsonl                # a quarter of an hour on two cores

In exact arithmetic they are equal (tested in fp64). In fp32 a sum over a batch rounds otherwise than one over a row,
so that where two tokens are nearly as likely either may come. Each prompt is answered by itself, and as one of many
that join while others leave; at the first token that differs, the logits of both candidates are told, as the prompt
alone has them. Rows that the file has already are left, so that it goes on where it ended.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import Line, add

from hilora import HiLoRA
from hilora.base.prompts import encode_prompts
from hilora.bench.workload import make_workload
from hilora.engine.call import Call
from hilora.engine.heard import Told
from hilora.engine.joining import requests_of
from hilora.engine.request import Request
from hilora.engine.thread import drive
from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines

HERE = Path(__file__).parents[1]


def requests(router: HiLoRA, prompts: Sequence[str], tokens: Sequence[int], ends: Sequence[int]) -> list[Request]:
    """A request for each prompt, of up to so many tokens."""
    routed, encoded = router.planner.route(prompts), encode_prompts(prompts, router.tokenizer)
    found = []
    for row, (ids, most) in enumerate(zip(encoded, tokens, strict=True)):
        call = Call(routed, {row: ids}, 0, (), {"max_new_tokens": most, "eos_token_id": list(ends)})
        ((_, _, (request,)),) = requests_of(router.lanes, call, [row])
        found.append(request)
    return found


def finish(router: HiLoRA, asked: Sequence[Request], most: int) -> None:
    """Have them answered, so many at once; as one ends the next joins."""
    call = Call(router.planner.route([]), {}, 0, (), {})
    for _ in drive(router.lanes.engine, iter(asked), most, call.events):
        pass


def gap(router: HiLoRA, prompt: str, most: int, tokens: Sequence[int], other: int) -> float:
    """How far the logits of two candidates for the last token are apart, as the prompt alone has them."""
    (request,) = requests(router, [prompt], [len(tokens)], [])
    request.pick = told = Told(tokens)
    finish(router, [request], 1)
    logits = told.heard[len(tokens) - 1]
    return abs(float(logits[tokens[-1]] - logits[other]))


def compare(router: HiLoRA, prompts: Sequence[str], args: argparse.Namespace, first: int) -> Iterator[Line]:
    """A line for each prompt from some one on, a group at a time."""
    random = np.random.default_rng(args.seed)
    lengths = random.integers(2, args.new_tokens + 1, len(prompts)).tolist()
    for start in range(first, len(prompts), args.group):
        part = slice(start, start + args.group)
        together = requests(router, prompts[part], lengths[part], [])
        finish(router, together, args.batch)
        for number, (prompt, most, many) in enumerate(zip(prompts[part], lengths[part], together, strict=True)):
            (alone,) = requests(router, [prompt], [most], [])
            finish(router, [alone], 1)
            line: Line = {"prompt": start + number, "tokens": len(alone.new), "same": many.new == alone.new}
            if not line["same"]:
                at = next(i for i, pair in enumerate(zip(many.new, alone.new, strict=True)) if len({*pair}) > 1)
                line |= {"at": at, "gap": gap(router, prompt, most, alone.new[: at + 1], many.new[at])}
            yield line


def report(lines: Sequence[Line]) -> str:
    """Counts, and the largest gap."""
    others = [line for line in lines if not line["same"]]
    far = max((line["gap"] for line in others), default=0.0)
    share = 100 * (1 - len(others) / len(lines))
    return (
        f"{len(lines)} answers, {len(others)} differ ({share:.2f} % the same); largest gap of logits there {far:.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--base")
    parser.add_argument("--method", default="hilora")
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=12, help="each answer has 2 to so many")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=100, help="prompts that come at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    known = [line for line in read_lines(args.json) if "prompt" in line] if args.json and args.json.exists() else []
    router = HiLoRA.from_pretrained(args.base, args.pool, args.method, dtype=torch.float32)
    many: dict[str, Any] = {"share": "zipf", "words": args.words, "new_tokens": 1}
    work = make_workload(
        [str(i) for i in range(8)], adapters=min(8, args.answers), batch=args.answers, seed=args.seed, **many
    )
    if not known:
        about = {name: getattr(args, name) for name in ("method", "answers", "words", "new_tokens", "batch", "group")}
        add(args.json, [setup("benchmarks/same.py", pool=args.pool.name, seed=args.seed, **about)])
    found = list(known)
    for line in compare(router, work.prompts, args, len(known)):
        found.append(line)
        add(args.json, [line])
    print(json.dumps({"answers": len(found), "differ": sum(not line["same"] for line in found)}))
    print(report(found))


if __name__ == "__main__":
    main()
