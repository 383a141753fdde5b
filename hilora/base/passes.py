"""What a pass of the base model over a prompt says, for methods that route by it; the refusal where there is none.

`engine.last_token.LastToken` makes such passes; a planner without a base model has `no_pass`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from torch import Tensor

from hilora.base.prompts import Prompts
from hilora.errors import InputError

Pass = Callable[[Prompts, str], Tensor]
"""(prompts, name of a module) -> (batch, in): what the module reads at each prompt's last token."""


def no_pass(method: str) -> Pass:
    """The pass of a method where no base model is at hand: an InputError that says where there is one."""

    def refuse(prompts: Prompts, module: str) -> NoReturn:
        raise InputError(needs_base(method, "a planner alone"))

    return refuse


def needs_base(method: str, where: str) -> str:
    """Why a method is refused by what has no base model.

    Args:
        method: its name.
        where: what has none, such as "hilora route".
    """
    return (
        f"{method} routes by a pass of the base model over each prompt; got {where}, which has no base model. Answer "
        "with it where there is one (hilora generate, hilora serve, hilora evaluate, HiLoRA.generate), or choose a "
        "method that routes by the prompt's text, such as hilora-plus."
    )
