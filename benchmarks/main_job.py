"""Throughput of one batch: base model, one unmerged PEFT adapter, hilora. Interleaved rounds, medians.

    python benchmarks/main_job.py --pool pools/flan-mini --out benchmarks/main_job.jsonl

32 prompts of about 90 tokens, 32 new tokens each, greedy, end token suppressed so that all do the same work.
hilora routes every prompt by itself (embedding included) over the whole pool; its time without the
embedding is given apart. Run it with nothing else on the machine. `--profile` prints where hilora's time goes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilora import HiLoRA, Pool, get_method
from hilora.bench.workload import WORDS
from hilora.evaluate.setup import setup
from hilora.models import load_base
from hilora.planner import Planner
from hilora.route.embed import Embedder

STARTS = (
    "Is the sentiment of this review positive or negative? ",
    "Premise and hypothesis follow. Does the first entail the second? ",
    "Write a sentence with these words: ",
    "Is this sentence acceptable English? ",
    "What is the topic of this news text? ",
    "What kind of answer does this question ask for? ",
)


def prompts(count: int, words: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [STARTS[i % len(STARTS)] + " ".join(rng.choice(WORDS.split(), size=words)) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()

    from peft import LoraConfig, get_peft_model

    pool = Pool.open(args.pool)
    model, tokenizer = load_base(pool.base.name, dtype=args.dtype, device_map="cpu")
    twin, _ = load_base(pool.base.name, dtype=args.dtype, device_map="cpu")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft_model: Any = get_peft_model(twin, config, autocast_adapter_dtype=False).eval()
    texts = prompts(args.batch, args.words)
    embedder = Embedder()
    routers = {m: HiLoRA(model, tokenizer, Planner(pool, get_method(m), embedder)) for m in ("base", "hilora")}
    base = routers["base"]
    fixed = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "batch_size": args.batch}

    from hilora.prompts import encode_prompts, pad_id

    ids, mask = base._pad(encode_prompts(texts, tokenizer))

    def peft_single() -> None:
        with torch.inference_mode():
            peft_model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                pad_token_id=pad_id(tokenizer),
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
            )

    contenders: dict[str, Callable[[], Any]] = {
        "base": lambda: base.generate(texts, **fixed),
        "peft_single": peft_single,
        "hilora": lambda: routers["hilora"].generate(texts, **fixed),
        "embedding": lambda: embedder(texts),
    }
    if args.profile:
        contenders["hilora"]()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            contenders["hilora"]()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
        return
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(args.rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
        print(f"round {round_number}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in times.items() if t), flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    answers = routers["hilora"].generate(texts, **fixed)
    result = setup(
        "benchmarks/main_job.py",
        dtype=args.dtype,
        batch=args.batch,
        prompt_tokens=int(mask.sum()),
        new_tokens=args.new_tokens * args.batch,
        rounds=args.rounds,
        adapters_in_batch=len({name for answer in answers for name in answer.adapters}),
        seconds={name: [round(s, 4) for s in seconds] for name, seconds in times.items()},
        median_seconds={name: round(s, 4) for name, s in medians.items()},
        hilora_over_base=round(medians["base"] / medians["hilora"], 4),
        hilora_without_embedding_over_base=round(medians["base"] / (medians["hilora"] - medians["embedding"]), 4),
        hilora_over_peft_single=round(medians["peft_single"] / medians["hilora"], 4),
    )
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as out:
            out.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
