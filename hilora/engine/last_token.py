"""One pass of the base model over a prompt, stopped at a module: what that module reads at the prompt's last token.

Each prompt is read by itself, so that what shares a batch changes nothing, and by the base alone: no adapter is in
it. Of an encoder-decoder the encoder reads. What runs on the model meanwhile waits for one prompt at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.modules import modules_of
from hilora.base.prompts import Prompts, check_lengths, encode_prompts
from hilora.engine.attach import carrying
from hilora.engine.thread import Engine
from hilora.errors import ModelError


class _Stop(Exception):  # no error: the rest of the model need not run
    """What was looked for has been read."""


class LastToken:
    """A `base.passes.Pass`.

    Args:
        model, tokenizer: the base, in eval mode.
        engine: the model's own.
    """

    def __init__(self, model: Any, tokenizer: Any, engine: Engine) -> None:
        self.model, self.tokenizer, self.engine = model, tokenizer, engine

    def __call__(self, prompts: Prompts, module: str) -> Float[Tensor, "batch in"]:
        """What a module reads at the last token of each prompt, on the CPU, in at least fp32.

        Raises:
            InputError: a prompt is empty, or too long for the model.
            ModelError: there is no such module, or it reads nothing when a prompt is read.
        """
        encoded = encode_prompts(prompts, self.tokenizer) if prompts else []
        check_lengths(encoded, 1, self.model.config)
        target, found = modules_of(self.model, [module])[module], dict[tuple[int, ...], Tensor]()
        for ids in encoded:
            key = tuple(ids)
            if key not in found:
                with self.engine.alone(), carrying(self.model), torch.inference_mode():
                    found[key] = self._read(ids, module, target)
        if not encoded:
            return torch.empty(0, 0)
        return torch.stack([found[tuple(ids)] for ids in encoded])

    def _read(self, ids: list[int], name: str, module: torch.nn.Module) -> Float[Tensor, " in"]:
        read: list[Tensor] = []

        def stop(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = [each for each in (*inputs, *named.values()) if isinstance(each, Tensor)]
            read.append(given[0].flatten(0, -2)[-1])  # (in,)
            raise _Stop

        reader = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        hook = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            reader(input_ids=torch.tensor([ids], device=self.model.device))
        except _Stop:
            last = read[0]
            return last.to("cpu", torch.promote_types(last.dtype, torch.float32))
        finally:
            hook.remove()
        raise ModelError(
            f"Module {name!r} reads nothing when the base model reads a prompt. Name another site: logo:site=..."
        )
