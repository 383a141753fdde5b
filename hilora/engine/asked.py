"""Generation options -> how tokens are picked in the joining lane, and whether they can be picked there at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import (
    GenerationConfig,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hilora.engine.pick import Pick, Process
from hilora.engine.sampling import SAMPLING, how_many, is_sampled, warpers_of

PROCESSES: dict[str, Any] = {
    "sequence_bias": lambda value, ends: SequenceBiasLogitsProcessor(value),
    "repetition_penalty": lambda value, ends: RepetitionPenaltyLogitsProcessor(penalty=value),
    "no_repeat_ngram_size": lambda value, ends: NoRepeatNGramLogitsProcessor(value),
    "bad_words_ids": lambda value, ends: NoBadWordsLogitsProcessor(value, list(ends) or None),
    "suppress_tokens": lambda value, ends: SuppressTokensLogitsProcessor(value),
}
"""Options whose effect on a row depends on its own tokens alone, in the order in which transformers applies them."""
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Those that read all of a row's tokens, and their values that do nothing."""
OURS = {
    *("max_new_tokens", "min_new_tokens", "eos_token_id", "stop_strings", "do_sample", "num_return_sequences"),
    *SAMPLING,
    *PROCESSES,
}
"""Options that the joining lane knows."""
NOTHING = {
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config"),
    *("max_length", "use_cache", "cache_implementation", "return_dict_in_generate", "remove_invalid_values"),
    *(
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "assistant_confidence_threshold",
    ),
}
"""What a model's generation config may say that changes nothing there."""


def can_join(options: Mapping[str, Any], defaults: Any) -> bool:
    """Whether requests with these options may share steps with any others.

    Args:
        options: as the caller gave them.
        defaults: the model's generation config.
    """
    if getattr(defaults, "use_cache", True) is False or defaults.cache_implementation not in (None, "dynamic"):
        return False
    if any(value is not None for name, value in options.items() if name not in OURS | {"pad_token_id"}):
        return False
    neutral, own = GenerationConfig().to_dict(), defaults.to_dict()
    others = [
        name
        for name, value in own.items()
        if name not in OURS | NOTHING and name not in options and value not in (None, neutral.get(name))
    ]
    beams, copies = (how_many(name, options, defaults) for name in ("num_beams", "num_return_sequences"))
    return beams == 1 and not others and (copies == 1 or is_sampled(options, defaults))


def pick_of(
    options: Mapping[str, Any],
    defaults: Any,
    sampling: Mapping[str, Any] | None,
    ends: Sequence[int],
) -> Pick:
    """How the tokens of a call's answers are picked, but for the key of each one's draws.

    Args:
        options: as the caller gave them.
        defaults: the model's generation config, for what is not given.
        sampling: what shapes the distribution (`sampling.split_sampling`); None takes the likeliest token.
        ends: the end tokens.
    """
    asked = {name: _value(options, defaults, name) for name in (*PROCESSES, "min_new_tokens")}
    least = int(asked.pop("min_new_tokens") or 0)
    processes: list[Process] = [PROCESSES[name](value, ends) for name, value in asked.items() if _acts(name, value)]
    warp = None if sampling is None else warpers_of(dict(sampling))
    return Pick(processes, warp, least=least, ends=tuple(ends))


def padding_blind(options: dict[str, Any], model: Any) -> list[Process]:
    """What of the options reads a row's tokens, for `sampling.Unpadded`; taken out of them.

    transformers lets it read padding, too, so that an answer would depend on how long the others of its batch are. An
    encoder-decoder reads its own answer alone, which no padding precedes.
    """
    defaults, found = model.generation_config, list[Process]()
    for name, neutral in NEUTRAL.items():
        value = _value(options, defaults, name)
        if _acts(name, value) and not model.config.is_encoder_decoder:
            found.append(PROCESSES[name](value, ()))
            options[name] = neutral
    return found


def _value(options: Mapping[str, Any], defaults: Any, name: str) -> Any:
    given = options.get(name)
    return getattr(defaults, name, None) if given is None else given


def _acts(name: str, value: Any) -> bool:
    return value is not None and value != NEUTRAL.get(name)
