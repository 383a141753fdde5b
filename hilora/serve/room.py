"""How many tokens a prompt has room for."""

from __future__ import annotations

from hilora.base.prompts import context_length
from hilora.engine.lanes import Lanes
from hilora.serve.faults import ServiceError


def room(lanes: Lanes, prompt: int, asked: int | None, default: int) -> int:
    """How many new tokens a prompt may have.

    Args:
        lanes: of the model.
        prompt: tokens of the prompt.
        asked: for so many; None where the request does not say.
        default: for that case.

    Raises:
        ServiceError: more are asked for than the context has room for.
    """
    limit = None if lanes.model.config.is_encoder_decoder else context_length(lanes.model.config)
    if limit is None:
        return asked or default
    left = limit - prompt
    if left < 1 or (asked is not None and asked > left):
        wanted = "" if asked is None else f" and {asked} for the answer"
        raise ServiceError(
            f"This model's context is {limit} tokens; asked for were {prompt} in the prompt{wanted}. Shorten the "
            "prompt, or ask for fewer tokens.",
            "context_length_exceeded",
            "messages",
        )
    return min(left, default) if asked is None else asked
