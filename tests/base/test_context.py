"""The context of a base model is what its positions allow, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as tf

from hilora.base.prompts import check_lengths, context_length
from hilora.errors import InputError


def config(rope: dict[str, Any] | None = None, **more: Any) -> Any:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 99}
    given = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    return tf.LlamaConfig(**{**sizes, "max_position_embeddings": 32, **given, **more})


LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = [
    (None, 32, 32),
    ({"rope_type": "default", "factor": 4.0}, 32, 32),
    ({"rope_type": "linear", "factor": 4.0}, 32, 128),
    ({"rope_type": "dynamic", "factor": 2.0}, 32, 64),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 32, 128),
    ({"rope_type": "yarn", "factor": 4.0}, 32, 128),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128, 128),
    ({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 31}, 32, 77),
    ({"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, **LONG}, 32, 128),
    ({"rope_type": "longrope", "original_max_position_embeddings": 32, **LONG}, 128, 128),
    ({"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 32, **LLAMA3}, 256, 256),
    ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32, **LLAMA3}, 32, 256),
]


@pytest.mark.parametrize(("rope", "length", "expected"), SCALED)
def test_a_scaled_rotary_embedding_reaches_its_original_length_times_the_factor_and_not_twice(
    rope: dict[str, Any] | None, length: int, expected: int
) -> None:
    of = config(rope, max_position_embeddings=length)
    assert context_length(of) == expected
    check_lengths([[5] * (expected - 4)], 4, of)
    with pytest.raises(InputError, match=f"context of {expected} leaves {expected - 4}"):
        check_lengths([[5] * (expected - 3)], 4, of)


def test_the_older_names_of_scaling_mean_the_same() -> None:
    class Old:
        is_encoder_decoder, max_position_embeddings = False, 32

    Old.rope_scaling = {"type": "linear", "factor": 2.0}  # type: ignore[attr-defined]
    assert context_length(Old()) == 64
    Old.rope_scaling = {"type": "su", "factor": None, **LONG}  # type: ignore[attr-defined]
    assert context_length(Old()) == 32
    Old.rope_scaling, Old.original_max_position_embeddings = {"type": "longrope", "factor": 3}, 16  # type: ignore[attr-defined]
    assert context_length(Old()) == 48


def test_of_layers_that_are_scaled_differently_the_shortest_counts() -> None:
    class Layers:
        is_encoder_decoder, max_position_embeddings = False, 32
        rope_parameters = {  # noqa: RUF012
            "full_attention": {"rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_type": "default"},
        }

    assert context_length(Layers()) == 32
    Layers.rope_parameters["sliding_attention"] = {"rope_type": "linear", "factor": 2.0}
    assert context_length(Layers()) == 64


@pytest.mark.parametrize("length", [0, -1, 10**9, 10**30, None])
def test_a_length_that_is_none_or_beyond_all_use_bounds_nothing(length: int | None) -> None:
    class Unbounded:
        is_encoder_decoder, max_position_embeddings = False, length

    assert context_length(Unbounded()) is None
    check_lengths([[5] * 100_000], 4, Unbounded())


def test_a_context_is_found_by_its_other_name_and_in_the_part_that_reads_text() -> None:
    assert context_length(tf.GPT2Config(n_positions=64)) == 64
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text = tf.Gemma3TextConfig(**sizes, max_position_embeddings=48)
    assert context_length(tf.Gemma3Config(text_config=text.to_dict())) == 48
