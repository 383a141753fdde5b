"""Every causal and encoder-decoder architecture that transformers can build tiny: of which class, and is that right?

Each gets random weights in fp32 and two random adapters at its linear modules. Four prompts of different lengths, of
which one ends early, are answered in one batch as `HiLoRA` runs it, and each prompt alone by the plain equation. What
the other ways to run the batch give is noted, too, and the class of the same weights in bf16. Resumes where it
stopped; `--page` writes the table of the docs.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from lines import append
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, __version__
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from hilora.base.modules import linear_shapes, placements
from hilora.base.padding import pad_batch
from hilora.base.rows import Order, orders, rows_apart, some_tokens
from hilora.compose.stack import stack_sites
from hilora.compose.weighted import Weighted
from hilora.engine.attachment import FORMS
from hilora.engine.batching import Batching, ServeRows
from hilora.engine.closed import generate_whole
from hilora.engine.ended import RowEnds
from hilora.engine.heard import Alone
from hilora.engine.loop import Loop
from hilora.engine.pick import Pick
from hilora.engine.probe import batching_of
from hilora.engine.request import Request
from hilora.types import Factors, Plan

FILL, END, RANK, NEW, TIE = 0, 2, 2, 12, 1e-3
LENGTHS, ADAPTER = (9, 3, 5, 2), (0, 1, 0, 1)
MOST = 20_000_000
"""Weights of a model that counts as tiny."""
SECONDS = 90
"""For one architecture."""
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim", "emb_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size", "mlp_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "global_head_dim", "swa_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "mamba_d_head", "mamba_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("state_size", "chunk_size", "mamba_chunk_size", "attention_window", "local_radius"), 8),
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size"), 99),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 256),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "lru_width", "o_lora_rank"), 32),
    **dict.fromkeys(("linear_num_key_heads", "first_k_dense_replace", "index_n_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "mamba_dt_rank", "time_step_rank", "rotary_dim"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 8),
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99, "num_kv_shared_layers": 0},
    **{"pad_token_id": FILL, "bos_token_id": 1, "eos_token_id": END, "index_topk": 4},
}
"""What is made small, by the names that configs have for it."""
OWN: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "use_mamba_kernels": False},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"], "shared_intermediate_size": 32},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mamba", "moe"], "n_groups": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"]},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "n_mamba_heads": 2},
    "zamba2": {"hybrid_layer_ids": [1, 3], "mamba_ngroups": 1, "n_mamba_heads": 8, "use_mem_rope": False},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "rwkv": {"attention_hidden_size": 32},
    "led": {"attention_window": [8, 8]},
    "reformer": {
        **{"attn_layers": ["local", "lsh"] * 2, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
        **{"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "is_decoder": True, "feed_forward_size": 48},
    },
    "fsmt": {"langs": ["en", "de"]},
    "xmod": {"is_decoder": True, "languages": ["en_XX"], "default_language": "en_XX"},
    "xlm": {"n_langs": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "openai-gpt": {"n_layer": 2},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    **{
        name: {"is_decoder": True}
        for name in (
            *(
                "bert",
                "bert-generation",
                "big_bird",
                "camembert",
                "data2vec-text",
                "electra",
                "ernie",
                "megatron-bert",
            ),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl",),
        )
    },
}
"""What an architecture needs beside."""
OTHER = re.compile("Router|GroupedLinear")
"""Linear by name, but what they give is not x @ weight.T: an adapter's delta has another shape."""


BESIDE: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": 8, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    {"num_key_value_heads": 4},
)
"""More settings, tried in turn where it cannot be run without."""


class TooLong(Exception):
    """An architecture took longer than `SECONDS`."""


def architectures() -> dict[tuple[str, str], str]:
    """(kind, model type) -> its class in transformers."""
    found = {("causal", name): made for name, made in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return found | {("seq2seq", name): made for name, made in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()}


def tiny_config(kind: str, name: str, more: Mapping[str, Any]) -> Any:
    """The config of a tiny model, with more settings."""
    made = CONFIG_MAPPING[name]
    given = _small(made()) | OWN.get(name, {}) | dict(more)
    if kind == "causal" and "is_encoder_decoder" in made().to_dict():
        given |= {"is_encoder_decoder": False, "is_decoder": True} if made().is_encoder_decoder else {}
    elif kind == "seq2seq":
        given |= {"decoder_start_token_id": 1}
    return made(**given)


def _small(config: Any) -> dict[str, Any]:
    """What of a config is made small, the configs within it too."""
    known = config.to_dict()
    found = {name: SIZES[name] for name in SIZES if known.get(name) is not None}
    if known.get("kv_lora_rank") is not None:  # keys of all heads come from one vector
        found["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, name, None)) is not None:
            found[name] = type(inner)(**_small(inner)).to_dict()
    return found


def tiny_model(kind: str, name: str, more: Mapping[str, Any] | None = None) -> Any:
    """A random fp32 model whose answers differ from prompt to prompt."""
    config, auto = (
        tiny_config(kind, name, more or {}),
        AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM,
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(config).parameters())
    if count > MOST:
        raise ValueError(f"{count:,} weights, made small as it is")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(weight, Tensor) and weight.ndim == 2:
            nn.init.normal_(weight, std=1.5 * max(1, weight.shape[-1]) ** -0.5)
    for parameter in model.parameters():  # norms and biases that start at 1 and 0 would hide faults
        parameter.data += 0.05 * torch.randn_like(parameter)
    own = model.generation_config
    own.pad_token_id, own.eos_token_id, own.forced_eos_token_id, own.num_beams = FILL, None, None, 1
    return model


def random_adapters(model: Any, names: Sequence[str]) -> list[Factors]:
    """Two adapters at these modules."""
    shapes, generator = linear_shapes(model), torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.7 / shape[-1] ** 0.5

    return [{name: (drawn(RANK, shapes[name][0]), drawn(shapes[name][1], RANK)) for name in names} for _ in range(2)]


class Until:
    """Reads an answer that a token ends."""

    def __init__(self, end: int) -> None:
        self.end, self.ended = end, False

    def feed(self, token: int) -> None:
        """Take the next token."""
        self.ended = token == self.end


class Unasked(RowEnds):
    """Says nothing: transformers sees end tokens by itself."""

    criteria: Any = ()

    def __init__(self) -> None:
        self.start, self.in_place = 0, True


class Placed(Alone):
    """Serves requests whose `plan` is their row in a plan of all."""

    def __init__(self, serve: ServeRows) -> None:
        self.serve = serve

    def __call__(self, requests: Sequence[Request]) -> AbstractContextManager[object]:
        """The model under the plan of these rows."""
        return self.serve([request.plan for request in requests])


class Case:
    """Prompts, adapters and what each prompt alone is answered."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model, self.gate, self.left = model, Weighted(), not model.config.is_encoder_decoder
        tokens = some_tokens(model, sum(LENGTHS))
        starts = [sum(LENGTHS[:row]) for row in range(len(LENGTHS))]
        self.prompts = [tokens[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]
        places = placements(model)
        self.sites = stack_sites(random_adapters(model, names), {name: places[name] for name in names})
        used = nn.functional.one_hot(torch.tensor(ADAPTER), 2)
        ones = torch.ones(len(ADAPTER))
        self.plan = Plan((0, 1), torch.tensor([RANK] * 2), used.float(), used * RANK, ones, whole=True)
        self.options = {"max_new_tokens": NEW, "pad_token_id": FILL}
        model.generation_config.eos_token_id = None
        first = self.alone(0)[0]
        self.end = next((token for token in first[1:-2] if token != FILL), END)
        model.generation_config.eos_token_id = self.end  # the longest row ends early
        self.expected = [self.alone(row) for row in range(len(LENGTHS))]

    def alone(self, row: int) -> tuple[list[int], list[float]]:
        """New tokens of a prompt alone, by the plain equation, and by how much each was ahead of the next best."""
        ids = torch.tensor([self.prompts[row]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.options}
        asked = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
        with FORMS["plain"](self.model, self.sites, False).bind(self.plan, self.gate)([row]), torch.inference_mode():
            found = self.model.generate(**given, **asked)
        new = found.sequences[0, -len(found.logits) :].tolist()
        two = [step[0].float().topk(2).values for step in found.logits]
        return new, [float(best - next_best) for best, next_best in two]

    def together(self, batching: Batching) -> list[list[int]]:
        """New tokens of each prompt in a batch that runs so."""
        serve = FORMS["fast"](self.model, self.sites, False).bind(self.plan, self.gate)
        if batching is Batching.OPEN:
            return self._joined(Placed(serve))
        ids, mask = pad_batch(self.prompts, FILL, left=self.left)
        ending, is_alone = Unasked(), batching is Batching.ALONE
        with torch.inference_mode():
            new = generate_whole(self.model, ids, mask, self.options, serve, ending, alone=is_alone)
        return new.tolist()

    def _joined(self, serve: Placed) -> list[list[int]]:
        """Row by row they join; one that has ended leaves at once."""
        loop, plain = Loop(self.model, FILL), Pick()
        asked = [Request(ids, NEW, Until(self.end), plain, serve, row) for row, ids in enumerate(self.prompts)]
        with torch.inference_mode():
            for request in asked:
                loop.waiting.append(request)
                loop.step()
            while loop.busy:
                loop.step()
        for request in asked:
            if request.error is not None:
                raise request.error
        return [request.new for request in asked]

    def compare(self, batching: Batching) -> str:
        """ "same", "same but for ties", or how the batch differs from the rows alone."""
        try:
            found = self.together(batching)
        except TooLong:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a model raises is what is to be told
            return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
        wrong, ties = [], 0
        for row, (got, (want, ahead)) in enumerate(zip(found, self.expected, strict=True)):
            differs = next((i for i, token in enumerate(want) if got[i : i + 1] != [token]), None)
            if differs is not None and ahead[differs] < TIE:
                ties += 1
            elif differs is not None:
                wrong.append(row)
        if wrong:
            return f"differs in {len(wrong)} of {len(found)} rows"
        return f"same but for {ties} ties" if ties else "same"


def measure(kind: str, name: str) -> dict[str, Any]:
    """What is found out about an architecture, with the first of several sizes that fit it."""
    first: Exception | None = None
    for more in BESIDE:
        try:
            return examine(tiny_model(kind, name, more))
        except TooLong:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a model raises
            first = first or error
    assert first is not None
    raise first


def examine(model: Any) -> dict[str, Any]:
    """What is found out about a model."""
    lies, output = orders(model), model.get_output_embeddings()
    modules = {each: model.get_submodule(each) for each in linear_shapes(model)}
    names = [each for each, of in modules.items() if not OTHER.search(type(of).__name__) and of is not output]
    plain = [each for each in names if lies.get(each) is not Order.MIXED]
    found: dict[str, Any] = {
        "weights": sum(p.numel() for p in model.parameters()),
        "modules": len(names),
        "by_step": sum(order is Order.STEPS for order in lies.values()),
        "mixed": len(names) - len(plain),
    }
    batching, half = batching_of(model, FILL), copy.deepcopy(model).to(torch.bfloat16)
    case = Case(model, plain)
    found |= {"batching": batching.value, "bf16": batching_of(half, FILL).value, "answers": case.compare(batching)}
    found["lengths"] = [len(new) for new, _ in case.expected]
    ways = (Batching.CLOSED, Batching.ALONE) if not case.left else tuple(Batching)
    found["ways"] = {way.value: case.compare(way) for way in ways if way is not batching}
    if found["mixed"]:  # with adapters everywhere, rows run alone
        every = Case(model, names)
        assert rows_apart(model, every.sites, every.plan)
        found["everywhere"] = every.compare(Batching.ALONE)
    answers = (found["answers"], found.get("everywhere", "same"))
    found["right"] = all(said.startswith("same") for said in answers) and found["bf16"] == batching
    return found


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Break off what takes longer."""

    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def line(kind: str, name: str, made: str, measured: Callable[[str, str], dict[str, Any]] = measure) -> dict[str, Any]:
    """The line of an architecture: what was found out, or why it was not run."""
    began, head = time.perf_counter(), {"kind": kind, "type": name, "class": made, "transformers": __version__}
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measured(kind, name)
    except Exception as error:  # noqa: BLE001  # one that cannot be built is listed with the reason
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).strip().splitlines() or [""])[0][:160]
        found = {"skipped": f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno})"}
    return head | found | {"seconds": round(time.perf_counter() - began, 1)}


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table of the docs."""
    ran = [each for each in lines if "skipped" not in each]
    counts = {way: sum(each["batching"] == way.value for each in ran) for way in Batching}
    wrong = [each for each in ran if not each["right"]]
    versions = " and ".join(sorted({each["transformers"] for each in lines}))
    text = [
        "# Architectures",
        "",
        "Before a base model first answers it is run on a few tokens, and put into one of three classes "
        "(`router.batching`):",
        "",
        "* **open**: rows of different lengths share a batch, and leave it when they end;",
        "* **closed**: they share a batch, padded, to the end of the last one (recurrent states, other caches than",
        "  keys and values of each row: they cannot be cut by row);",
        "* **alone**: padding changes answers, so each prompt runs by itself.",
        "",
        "What decides is the row alone. Modules that read (seq, batch, in) are served so; where rows cannot be told",
        "apart (experts that read some of the tokens, say) rows with different adapters there run one by one.",
        "",
        "Below is what `benchmarks/architectures.py` found on tiny random models in fp32: four prompts of different",
        "lengths and two adapters in one batch, one row ending early, against each prompt alone. A class stands for",
        "a config that was made small; yours is probed before it first answers. The same weights in bf16 are of the",
        "same class, since half precision is judged in fp32; one that is not would count as wrong.",
        "",
        f"{len(ran)} architectures ran ({', '.join(f'{count} {way}' for way, count in counts.items())}), "
        f"{len(wrong)} of them wrong; {len(lines) - len(ran)} could not be built or run tiny "
        f"(transformers {versions}).",
        "",
        "| type | class of transformers | batches | answers | other ways | modules by step, mixed |",
        "|---|---|---|---|---|---|",
    ]
    for each in sorted(ran, key=lambda each: (each["kind"], each["type"])):
        ways = ", ".join(f"{way}: {said.split(':')[0]}" for way, said in each["ways"].items())
        lie = f"{each['by_step']}, {each['mixed']}" if each["by_step"] or each["mixed"] else ""
        answers = each["answers"] if each["right"] else f"**{each['answers']}; in bf16 {each['bf16']}**"
        text.append(f"| {each['type']} | {each['class']} | {each['batching']} | {answers} | {ways} | {lie} |")
    text += ["", "## Not run", "", "| type | class of transformers | why |", "|---|---|---|"]
    for each in sorted(lines, key=lambda each: (each["kind"], each["type"])):
        if "skipped" in each:
            text.append(f"| {each['type']} | {each['class']} | {each['skipped'].replace('|', '/')} |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="keep lines here, and leave out what it holds")
    parser.add_argument("--page", type=Path, help="write the table of all lines here")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="these model types, again if need be")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no other one after that")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    kept = (
        [json.loads(text) for text in args.json.read_text().splitlines()] if args.json and args.json.exists() else []
    )
    if args.only:
        kept = [each for each in kept if each["type"] not in args.only]
        if args.json:
            args.json.write_text("".join(json.dumps(each) + "\n" for each in kept))
    done, began = {(each["kind"], each["type"]) for each in kept}, time.perf_counter()
    for (kind, name), made in architectures().items():
        if (kind, name) in done or (args.only and name not in args.only):
            continue
        if time.perf_counter() - began > 60 * args.minutes:
            break
        kept.append(line(kind, name, made))
        print(json.dumps(kept[-1]), flush=True)
        append(args.json, kept[-1])
    if args.page:
        args.page.write_text(page(kept))


if __name__ == "__main__":
    main()
