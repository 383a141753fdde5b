"""How large everything is: as on a card, and so small that a CPU runs it in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SITES = {"q and v": QV, "all seven": ALL}


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        name: "full" or "tiny".
        base, embedder: their configs' widths.
        dtype: of the base.
        batch, words, new_tokens, rank, distinct: of a batch, where a case does not say otherwise.
        short: new tokens of the tables' cases.
        rounds, few: of the targets' and of the tables' timings.
        batches, ranks, distincts, registered, fig7: places in the tables.
        adapters: of the largest pool, random ones of `rank`.
        moved: bytes of the copy that tells the card's speed.
        kinds: architectures whose answers are compared.
        compiled: (kind, method) whose compiled answers are compared.
        backend: of torch.compile.
    """

    name: str
    base: Mapping[str, int]
    embedder: Mapping[str, int]
    dtype: str
    batch: int = 32
    words: int = 90
    new_tokens: int = 32
    short: int = 16
    rank: int = 8
    distinct: int = 8
    rounds: int = 3
    few: int = 2
    batches: tuple[int, ...] = (1, 8, 64)
    ranks: tuple[int, ...] = (4, 16, 64)
    distincts: tuple[int, ...] = (1, 4, 16, 32)
    registered: tuple[int, ...] = (5, 20, 40)
    fig7: tuple[int, ...] = (1, 4, 16, 64)
    adapters: int = 40
    moved: int = 2**32
    kinds: tuple[str, ...] = ("llama", "qwen2", "gemma", "gpt2", "t5")
    compiled: tuple[tuple[str, str], ...] = (("llama", "hilora"), ("gpt2", "mixture"))
    backend: str = "inductor"


FULL = Size(
    "full",
    {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "vocab_size": 30522,
    },
    "bfloat16",
)
"""Llama-2-7B's shape, and all-MiniLM-L6-v2's."""

TINY = Size(
    "tiny",
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 400,
    },
    {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 400,
    },
    "float32",
    batch=4,
    words=6,
    new_tokens=3,
    short=2,
    rank=2,
    distinct=2,
    rounds=1,
    few=1,
    batches=(1, 4),
    ranks=(4,),
    distincts=(1, 4),
    registered=(2, 4),
    fig7=(1, 2),
    adapters=4,
    moved=2**20,
    kinds=("llama", "t5"),
    compiled=(("llama", "hilora"),),
)
