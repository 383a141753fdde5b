"""The plugin against the library: the same prompts, the same compositions, token by token.

By hand, in an environment with vLLM (`make .venv-vllm/.dev`), from the root of a clone:

    python -m tests.vllm.live.compare                       a tiny random Llama and adapters of ragged ranks
    python -m tests.vllm.live.compare --tp 3                the same, on three processes
    python -m tests.vllm.live.compare --tp 2 --sharded      on two, with LoRAs that are sharded, too
    python -m tests.vllm.live.compare --pool flan-mini      the embedded default

With --json FILE, what is found is added to a file, of which benchmarks/equal_in_vllm.py makes a table.
On the CPU with VLLM_CPU_KVCACHE_SPACE=1, and with VLLM_CPU_OMP_THREADS_BIND=nobind for several processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders

from hilora import HiLoRA
from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_base
from hilora.base.models import resolve_base
from hilora.base.modules import linear_shapes
from hilora.base.prompts import encode_prompts
from hilora.cli.demo import PROMPTS
from hilora.evaluate.setup import setup
from hilora.gateway.composition import needed_rank
from hilora.planner import Routed
from hilora.pool.export import export_adapter, write_peft
from hilora.pool.pool import Pool
from hilora.pool.source import find_pool
from hilora.types import Factors
from hilora.vllm import params, route
from tests.conftest import CHARS, tiny_bert, tiny_tokenizer

CLOSE = 1e-4
"""Logits of two candidates that may be told apart either way."""
LETTERS = {"a": "aba", "b": "xyz", "c": "mno", "d": "stu", "e": "pqr", "f": "gh."}
RANKS = {"a": 4, "b": 8, "c": 3, "d": 6, "e": 2, "f": 5}
METHODS: dict[str, dict[str, Any]] = {
    "base": {},
    "hilora": {"gamma": 0.4},
    "hilora by size": {"gamma": 0.5, "criterion": "magnitude"},
    "hilora-plus": {},
    "hilora-plus, half": {"gamma": 0.5},
    "mixture": {"k": 3},
    "selection": {},
}
"""Names of cases -> options of the method that their first word names."""
TOKENS = 24


def texts(task: str, count: int, seed: int) -> list[str]:
    """Random texts of an adapter's letters, longer than some blocks of keys."""
    draw = torch.Generator().manual_seed(seed * 100 + ord(task))
    pick = torch.randint(0, len(LETTERS[task]), (count, 60), generator=draw).tolist()
    return ["".join(LETTERS[task][each] if place % 7 else " " for place, each in enumerate(row)) for row in pick]


def tiny_base(folder: Path, heads: int = 3) -> Any:
    """A random Llama whose heads some processes can share; its tokenizer's tokens join without spaces."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=192, hidden_size=32 * heads, intermediate_size=120, num_hidden_layers=3,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=32, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # larger weights than at the start of training, so that answers differ
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    model.lm_head.weight.data[len(CHARS) + 3 :] = 0  # no tokens, there for processes to share
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def ragged(model: Any, rank: int, seed: int) -> Factors:
    """Random factors at all seven sites of a layer, of a lower rank at some, and at some not at all."""
    draw, found = torch.Generator().manual_seed(seed), Factors()
    for number, (site, (into, out)) in enumerate(linear_shapes(model).items()):
        if site == "lm_head" or (number + seed) % 11 == 0:
            continue
        here = max(1, rank // 2) if "down_proj" in site or "k_proj" in site else rank
        down, up = (torch.randn(*shape, generator=draw) * 0.3 for shape in ((here, into), (out, here)))
        found[site] = down, up
    return found


def tiny_world(root: Path, heads: int = 3) -> tuple[Path, Pool, Embedder]:
    """A base, and a pool of adapters for it."""
    embedder, base = Embedder(str(tiny_bert(root / "bert", longest=120))), root / "base"
    model = tiny_base(base, heads)
    pool = Pool.create(root / "pool", describe_base(str(base)), describe_embedder(embedder))
    for seed, (task, rank) in enumerate(RANKS.items()):
        write_peft(root / f"adapter-{task}", ragged(model, rank, seed), "base")
        pool.add(task, root / f"adapter-{task}", texts(task, 20, 1), embedder)
    pool.tune()
    return base, pool, embedder


@dataclass
class Case:
    """One prompt under one method.

    Attributes:
        kind: a name in `METHODS`, or "stock" for a LoRA of vLLM's own.
        ids: of the prompt.
        want: the library's answer.
        params: vLLM's, with the composition.
        router, routed, row: what the library answered by.
        lora: vLLM's request for a LoRA of its own.
    """

    kind: str
    ids: list[int]
    want: str
    params: Any
    router: HiLoRA
    routed: Routed
    row: int
    lora: Any = None

    def gap(self, tokens: Sequence[int]) -> float:
        """How far apart the library finds its choice and vLLM's, where an answer's tokens first differ; else 0."""
        read = torch.tensor([[*self.ids, *tokens]])
        with self.router.attached(self.routed, [self.row], 0), torch.inference_mode():
            logits = self.router.model(input_ids=read).logits[0, len(self.ids) - 1 : -1].float()
        best = logits.argmax(-1)
        for place, token in enumerate(tokens):
            if int(best[place]) != token:
                return float(logits[place, best[place]] - logits[place, token])
        return 0.0


def cases(base: Any, pool: Pool, embedder: Any, prompts: Sequence[str], loras: Path | None = None) -> Iterator[Case]:
    """Every prompt under every method; and, where a folder is given, under an adapter that vLLM has as its own."""
    tokens = {"max_tokens": TOKENS, "temperature": 0.0}
    first = HiLoRA.from_pretrained(base, pool, "base", embedder=embedder, dtype=torch.float32)
    encoded = encode_prompts(prompts, first.tokenizer)
    shared = {"tokenizer": first.tokenizer, "embedder": embedder}
    for kind, options in METHODS.items():
        router = HiLoRA.from_pretrained(first.model, pool, kind.split()[0].rstrip(","), **shared, **options)
        answers = router.generate(list(prompts), max_new_tokens=TOKENS, do_sample=False, seed=0)
        own, routed = route(router.planner, prompts, seed=0), router.planner.route(prompts)
        for row, (ids, answer) in enumerate(zip(encoded, answers, strict=True)):
            yield Case(kind, ids, answer.text, params(own[row].composition, **tokens), router, routed, row)
    if loras is None:
        return
    from vllm.lora.request import LoRARequest

    router = HiLoRA.from_pretrained(first.model, pool, "oracle", **shared)
    labels = [pool.names[row % 2] for row in range(len(prompts))]
    for name in set(labels):
        if not (loras / name).exists():
            export_adapter(pool, name, loras / name)
    answers = router.generate(list(prompts), max_new_tokens=TOKENS, do_sample=False, labels=labels)
    routed = router.planner.route(prompts, labels=labels)
    for row, (ids, answer) in enumerate(zip(encoded, answers, strict=True)):
        lora = LoRARequest(labels[row], 1 + pool.index(labels[row]), str(loras / labels[row]))
        yield Case("stock", ids, answer.text, params(None, **tokens), router, routed, row, lora)


@dataclass
class Found:
    """What a comparison found; by kind of case."""

    asked: Counter[str]
    equal: Counter[str]
    gaps: list[float]
    cached: int

    @property
    def line(self) -> dict[str, Any]:
        """As JSON."""
        gaps = [round(gap, 7) for gap in self.gaps]
        return {"asked": self.asked, "equal": self.equal, "gaps": gaps, "cached": self.cached}

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind}: {self.equal[kind]} of {count}" for kind, count in self.asked.items())
        largest = f"{max(self.gaps):.2g}" if self.gaps else "none"
        return (
            f"{self.equal.total()} of {self.asked.total()} answers equal ({kinds}); largest gap of logits where one "
            f"first differs: {largest}; {self.cached} prompt tokens came from the prefix cache"
        )


def compare(llm: Any, each: Sequence[Case]) -> Found:
    """Have vLLM answer all in one batch."""
    outputs = llm.generate(
        [{"prompt_token_ids": case.ids} for case in each],
        [case.params for case in each],
        lora_request=[case.lora for case in each],
        use_tqdm=False,
    )
    found = Found(Counter(), Counter(), [], sum(output.num_cached_tokens or 0 for output in outputs))
    for case, output in zip(each, outputs, strict=True):
        answer = output.outputs[0]
        same = answer.text.strip() == case.want.strip()
        found.asked[case.kind] += 1
        found.equal[case.kind] += same
        if not same:
            found.gaps.append(case.gap(list(answer.token_ids)))
    return found


def engine(base: Path, **options: Any) -> Any:
    """vLLM in fp32, with the plugin."""
    from vllm import LLM

    settings = {"max_loras": 6, "max_lora_rank": 8, "max_model_len": 256, "max_num_seqs": 64, "block_size": 32}
    fixed = {"dtype": "float32", "enable_lora": True, "enforce_eager": True, "enable_prefix_caching": True}
    return LLM(str(base), **fixed, **settings | options)


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def main() -> None:
    """Compare, and print what was found."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pool", help="a pool, for its own base; default: a random one, for a random base")
    asked.add_argument("--tp", type=int, default=1, help="processes that share the model")
    asked.add_argument("--sharded", action="store_true", help="share the LoRAs, too")
    asked.add_argument("--prompts", type=int, default=12)
    asked.add_argument("--json", type=Path, help="add what is found to this file")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options: dict[str, Any] = {"tensor_parallel_size": given.tp, "fully_sharded_loras": given.sharded}
        if given.pool is None:
            os.environ.setdefault("HILORA_CACHE", folder)
            base, pool, embedder = tiny_world(root, given.tp if given.tp > 1 else 3)
            prompts = [text for task in LETTERS for text in texts(task, given.prompts // len(LETTERS), 9)]
        else:
            pool = Pool.open(find_pool(given.pool))
            base, embedder = Path(resolve_base(pool.base.name)), None
            prompts = [shown.prompt for shown in PROMPTS][: given.prompts]
            rank = needed_rank(max(entry.rank for entry in pool.entries))
            options |= {"max_loras": 8, "max_lora_rank": rank, "max_model_len": 1024}
        os.environ["HILORA_POOL"] = str(pool.path)
        each = list(cases(str(base), pool, embedder, prompts, root / "loras"))
        llm = engine(base, **options)
        for turn in ("first", "again"):
            found = compare(llm, each)
            print(f"{turn}: {found}", file=sys.stdout, flush=True)
            if given.json:
                what = {"base": pool.base.name if given.pool else "a random Llama", "turn": turn}
                what |= {"processes": given.tp, "sharded": given.sharded}
                line = setup("tests/vllm/live/compare.py", vllm=_version(), **what) | found.line
                with given.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
