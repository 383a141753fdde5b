"""Requests that arrive at random: served each as it comes, or in batches of those that wait.

    python benchmarks/arrivals.py --json benchmarks/arrivals.jsonl              # ten minutes on two cores
    python benchmarks/arrivals.py --data FLAN_MINI/val --json real.jsonl        # prompts of a file or folder

engine      each request is a call of its own, from a thread of its own, followed token by token as `HiLoRA.stream`
            does; calls share the model's steps, and a row leaves when its answer ends
batches     one worker: whenever it is free it answers up to --batch of those that wait by one `HiLoRA.generate`. A
            call has one `max_new_tokens`, so a batch runs to the longest answer that one of its rows wants, and the
            others' are cut; all are there when the batch ends, the first token as well as the last

Rates are multiples of what an offline batch achieves: --batch prompts there at once, all answers of the mean length.
Gaps between arrivals are exponential, answers are of --new-tokens, evenly drawn, and have no end token; both ways and
all rates have the same requests in the same order. Only wanted tokens count. Times begin when a request arrives:

first token     until it is there; in batches the end of the batch
a token more    between the first and the last, shared by the tokens in between; batches give none one by one
latency         until the whole answer is there, also as its share of a wanted token

Rows that the file has already from this processor with the same settings are left. Run it with nothing else on the
machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from lines import Line, add

from hilora import HiLoRA
from hilora.base.outputs import check_file
from hilora.base.prompts import encode_prompts
from hilora.bench.workload import make_workload
from hilora.engine.call import Call
from hilora.engine.dispatch import answers
from hilora.evaluate.rows import load_rows
from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines
from hilora.types import Completion

OFFLINE = 3
"""Batches that tell what an offline batch achieves; one more before them warms up."""
MADE = "made words"
SETTINGS = ("pool", "prompts", "requests", "words", "new_tokens", "batch", "seed")
"""Options that a row's figures depend on."""


@dataclass(frozen=True)
class Asked:
    """A request: its prompt, the new tokens it wants, and when it arrives, in mean gaps."""

    prompt: str
    tokens: int
    arrives: float


@dataclass(frozen=True)
class Served:
    """What became of a request; seconds since the stream began."""

    tokens: int  # that were wanted
    arrived: float
    first: float  # its first token was there
    done: float  # its whole answer was
    adapters: Sequence[str]


def make_requests(prompts: Sequence[str], new_tokens: Sequence[int], seed: int) -> list[Asked]:
    """Requests in the order of their arrival; the first arrives at once.

    Args:
        prompts: one for each.
        new_tokens: least and most.
        seed: of lengths and gaps.
    """
    random, (least, most) = np.random.default_rng(seed), new_tokens
    tokens = random.integers(least, most + 1, len(prompts)).tolist()
    arrives = np.cumsum(random.exponential(size=len(prompts)))
    return [Asked(*each) for each in zip(prompts, tokens, (arrives - arrives[0]).tolist(), strict=True)]


def made_prompts(count: int, words: Sequence[int], seed: int) -> list[str]:
    """Made words, of least to most a prompt."""
    least, most = words
    work = make_workload(["all"], batch=count, adapters=1, share="identical", words=most, new_tokens=1, seed=seed)
    lengths = np.random.default_rng(seed).integers(least, most + 1, count)
    return [" ".join(text.split()[:length]) for text, length in zip(work.prompts, lengths, strict=True)]


def real_prompts(data: Path, count: int, seed: int) -> list[str]:
    """Prompts of a file or folder of rows, of all its tasks, drawn by the seed."""
    rows = load_rows(data)
    if len(rows) < count:
        raise SystemExit(f"{data} holds {len(rows)} prompts for {count} requests. Give --requests {len(rows)}.")
    return [rows[i].inputs for i in np.random.default_rng(seed).permutation(len(rows))[:count]]


def fixed(tokens: int) -> dict[str, Any]:
    """Options under which an answer has so many tokens."""
    return {"max_new_tokens": tokens, "eos_token_id": None}


def offline(router: HiLoRA, asked: Sequence[Asked], batch: int) -> float:
    """Requests per second of a batch that is there at once, with answers of the mean length."""
    prompts, seconds = [each.prompt for each in asked[:batch]], []
    tokens = round(statistics.mean(each.tokens for each in asked))
    for _ in range(OFFLINE + 1):
        began = time.perf_counter()
        router.generate(prompts, batch_size=batch, **fixed(tokens))
        seconds.append(time.perf_counter() - began)
    return len(prompts) / statistics.median(seconds[1:])


def arriving(asked: Sequence[Asked], per_s: float, began: float) -> Iterator[tuple[Asked, float]]:
    """Each request when it arrives, with when that is; who takes them late finds several at once."""
    for each in asked:
        arrived = each.arrives / per_s
        time.sleep(max(0.0, began + arrived - time.perf_counter()))
        yield each, arrived


def served(one: Asked, arrived: float, first: float, done: float, answer: Completion) -> Served:
    """What became of a request that has an answer; one with fewer tokens than were wanted would be no measure."""
    if answer.completion_tokens < one.tokens:
        raise SystemExit(
            f"An answer has {answer.completion_tokens} tokens instead of {one.tokens} ({answer.note}). "
            "Choose a method that answers every prompt."
        )
    return Served(one.tokens, arrived, first, done, answer.adapters)


def by_engine(router: HiLoRA, asked: Sequence[Asked], per_s: float, batch: int) -> list[Served]:
    """Each request by a call of its own."""
    began = time.perf_counter()

    def ask(one: Asked, arrived: float) -> Served:
        there: list[float] = []
        encoded, routed = encode_prompts([one.prompt], router.tokenizer), router.planner.route([one.prompt])
        call = Call(
            routed,
            dict(enumerate(encoded)),
            0,
            (),
            fixed(one.tokens),
            see=lambda reading: there.append(time.perf_counter() - began),
        )
        ((_, (answer,)),) = answers(router.lanes, call, [0], batch)
        done = time.perf_counter() - began
        return served(one, arrived, there[0] if there else done, done, answer)

    with ThreadPoolExecutor(len(asked)) as threads:
        return [each.result() for each in [threads.submit(ask, *each) for each in arriving(asked, per_s, began)]]


def in_batches(router: HiLoRA, asked: Sequence[Asked], per_s: float, batch: int) -> list[Served]:
    """Up to a batch of those that wait by one call, again and again."""
    waiting: SimpleQueue[tuple[Asked, float]] = SimpleQueue()
    found: list[Served] = []
    began = time.perf_counter()

    def arrive() -> None:
        for each in arriving(asked, per_s, began):
            waiting.put(each)

    with ThreadPoolExecutor(1) as gate:
        gate.submit(arrive)
        while len(found) < len(asked):
            taken = [waiting.get()]
            while len(taken) < batch and not waiting.empty():
                taken.append(waiting.get())
            longest = max(one.tokens for one, _ in taken)
            answers = router.generate([one.prompt for one, _ in taken], batch_size=batch, **fixed(longest))
            done = time.perf_counter() - began
            found += [
                served(one, arrived, done, done, answer)
                for (one, arrived), answer in zip(taken, answers, strict=True)
            ]
    return found


WAYS: dict[str, Callable[[HiLoRA, Sequence[Asked], float, int], list[Served]]] = {
    "engine": by_engine,
    "batches": in_batches,
}


def middle(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median and 95th percentile."""
    picks = {"p50": 0.5, "p95": 0.95}
    return {name: round(float(np.quantile(values, at)), digits) for name, at in picks.items()}


def figures(found: Sequence[Served]) -> Line:
    """What a stream's requests had of it."""
    seconds = max(each.done for each in found) - min(each.arrived for each in found)
    latency = [each.done - each.arrived for each in found]
    after = [
        1e3 * (each.done - each.first) / (each.tokens - 1)
        for each in found
        if each.tokens > 1 and each.done > each.first
    ]
    return {
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(found) / seconds, 3),
        "tokens_per_s": round(sum(each.tokens for each in found) / seconds, 1),
        "first_s": middle([each.first - each.arrived for each in found], 3),
        "token_ms": middle(after, 2) if after else None,
        "latency_s": middle(latency, 3),
        "latency_token_ms": middle([1e3 * t / each.tokens for t, each in zip(latency, found, strict=True)], 2),
        "adapters": round(statistics.mean(len(each.adapters) for each in found), 2),
        "distinct": len({name for each in found for name in each.adapters}),
    }


def measure(args: argparse.Namespace, known: Sequence[Line]) -> Iterator[Line]:
    """A row for each method, rate and way that is not known yet."""
    prompts = (
        real_prompts(args.data, args.requests, args.seed)
        if args.data
        else made_prompts(args.requests, args.words, args.seed)
    )
    asked = make_requests(prompts, args.new_tokens, args.seed)
    header = setup(
        "benchmarks/arrivals.py",
        pool=Path(args.pool).name,
        prompts=args.data.name if args.data else MADE,
        requests=args.requests,
        words=None if args.data else args.words,
        new_tokens=args.new_tokens,
        batch=args.batch,
        seed=args.seed,
    )
    alike = [line for line in known if all(line[key] == header[key] for key in (*SETTINGS, "device", "threads"))]
    for method in args.methods:
        mine = [line for line in alike if line["method"] == method]
        done = {(line["rate"], line["way"]) for line in mine}
        wanted = [(rate, way) for rate in args.rates for way in args.ways if (rate, way) not in done]
        if wanted:
            router = HiLoRA.from_pretrained(pool=args.pool, method=method)
            dtype = str(router.model.dtype).removeprefix("torch.")
            limit = mine[0]["offline_per_s"] if mine else round(offline(router, asked, args.batch), 3)
            by_engine(router, [Asked(asked[0].prompt, 2, 0.0)], 1.0, args.batch)  # what is made once is made
            for rate, way in wanted:
                print(f"{method}, {way}: {rate} of {limit} requests a second", flush=True)
                found = WAYS[way](router, asked, rate * limit, args.batch)
                about = {"method": method, "rate": rate, "way": way, "offline_per_s": limit}
                yield header | {"dtype": dtype} | about | figures(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--methods", nargs="+", default=["hilora-plus", "hilora"])
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 0.8, 1.1], help="of an offline batch's")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    pair = partial(parser.add_argument, type=int, nargs=2, metavar=("LEAST", "MOST"))
    pair("--words", default=[10, 60], help="of a made prompt")
    pair("--new-tokens", default=[8, 64], help="of an answer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="JSON Lines with inputs, for real prompts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for name in ("words", "new_tokens"):
        least, most = getattr(args, name)
        if not 1 <= least <= most:
            parser.error(f"--{name.replace('_', '-')} {least} {most}: give the least, from 1 on, and the most")
    if args.requests < 1 or args.batch < 1 or min(args.rates) <= 0:
        parser.error("--requests and --batch start at 1, --rates above 0")
    if args.json:
        check_file(args.json)
    known = read_lines(args.json) if args.json and args.json.exists() else []
    add(args.json, measure(args, known))


if __name__ == "__main__":
    main()
