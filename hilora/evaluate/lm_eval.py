"""HiLoRA as a model of lm-evaluation-harness, and the harness's command line with that model in it.

    python -m hilora.evaluate.lm_eval --model hilora --model_args pool=pools/flan-mini --tasks arc_easy

Up to release 0.4.13 the harness finds only its own models, so this module, which registers `hilora`, runs its
command line; later ones find `hilora` by the entry point `lm_eval.models`, and `lm_eval --model hilora` does.

A request is routed on its context alone: all continuations of a context share one route. What has no context
(texts of perplexity tasks, unconditional answers) is scored by the base model without adapters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from hilora.base.prompts import as_texts, check_lengths
from hilora.engine.generate import HiLoRA
from hilora.engine.sampling import SAMPLING
from hilora.errors import HiloraError, InputError
from hilora.evaluate.likelihood import UNROUTED, Scored, encode_pairs, encode_text, score, unrouted
from hilora.methods import DEFAULT_METHOD
from hilora.planner import Routed
from hilora.types import Completion

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import simple_parse_args_string
    from tqdm import tqdm  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    raise HiloraError("lm-evaluation-harness is not installed. Run: pip install 'hilora[lm-eval]'") from error

BATCH = 32
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The harness's names for the longest answer; the first that is given counts."""


@register_model("hilora")
class HiLoRALM(LM):  # type: ignore[misc]
    """A model that serves each request with the adapters that fit its context.

    Args:
        pool, method, base, dtype: as in `HiLoRA.from_pretrained`; any method but the oracle.
        device: as transformers' device_map; the harness says "cuda:0" by itself, which is the CPU where CUDA is not.
        batch_size: rows of a forward pass; "auto" is 32.
        max_new_tokens: of an answer, where its task does not say; the harness calls it `max_gen_toks`.
        seed: of the ROC allocation and of sampling.
        options: of the method, e.g. gamma=0.4; with a loaded base also its tokenizer.

    Raises:
        HiloraError: what is wrong, and what to do.
    """

    def __init__(
        self,
        pool: Any = None,
        method: str = DEFAULT_METHOD,
        base: Any = None,
        *,
        dtype: Any = None,
        device: str | None = None,
        batch_size: int | str = BATCH,
        max_new_tokens: int = 256,
        max_gen_toks: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if method == "oracle":
            raise InputError("The oracle routes by labels, and the harness gives none. Choose another method.")
        self.batch_size = BATCH if str(batch_size).startswith("auto") else int(batch_size)
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {batch_size}.")
        self.max_new_tokens = max_new_tokens if max_gen_toks is None else max_gen_toks
        self.seed = seed
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        self.router = HiLoRA.from_pretrained(base, pool, method, dtype=dtype, device_map=device, **options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HiLoRALM:
        """From `a=1,b=2`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HiLoRALM:
        """From model_args; they precede the batch size and device of the harness's own options."""
        return cls(**{k: v for k, v in (additional_config or {}).items() if v is not None} | arg_dict)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        contexts = list(dict.fromkeys(context for context, _ in pairs if context.strip()))
        items = encode_pairs(self.router, pairs, contexts)
        check_lengths([list(item.ids) for item in items], 1, self.router.model.config)
        found: dict[int, tuple[float, bool]] = {}
        for routed, alone in ((self.router.planner.route(contexts), False), (unrouted(self.router), True)):
            places = [i for i, item in enumerate(items) if (item.row == UNROUTED) == alone]
            scores = self._score(routed, [items[i] for i in places], [pairs[i] for i in places])
            found |= dict(zip(places, scores, strict=True))
        return [found[i] for i in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of each whole text, by the base model alone: there is no prompt to route on."""
        if self.router.model.config.is_encoder_decoder:
            raise InputError("An encoder-decoder gives no perplexity of a text; leave out the tasks that ask for it.")
        windows = [encode_text(self.router, request.args[0]) for request in requests]
        scores = iter(self._score(unrouted(self.router), [item for items in windows for item in items]))
        return [sum((next(scores)[0] for _ in items), 0.0) for items in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each context, up to a text of `until`; repeated requests are samples of their own."""
        asked: dict[tuple[str, str], list[int]] = {}  # (generation options, context) -> its requests
        for i, (context, given) in enumerate(request.args for request in requests):
            asked.setdefault((json.dumps(given, sort_keys=True), context), []).append(i)
        calls: dict[tuple[str, int], list[str]] = {}  # (generation options, samples of each context) -> contexts
        for (given, context), places in asked.items():
            samples = len(places) if self._options(given)["do_sample"] else 1
            calls.setdefault((given, samples), []).append(context)
        found = [""] * len(requests)
        for (given, samples), contexts in calls.items():
            answers = self._generate(contexts, self._options(given), samples)
            for number, context in enumerate(contexts):
                for copy, i in enumerate(asked[given, context]):
                    found[i] = answers[number * samples + copy % samples].text
                    self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
        return found

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> NoReturn:
        """Refuse `--apply_chat_template`."""
        raise InputError(
            "hilora applies the base model's chat template itself, to a context that it has routed on; with "
            "--apply_chat_template it would be applied twice. Leave that option out."
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None for the harness to apply."""
        return self.apply_chat_template(()) if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Asked for only where the harness is to apply a chat template."""
        return self.apply_chat_template(())

    def _score(self, routed: Routed, items: Sequence[Scored], pairs: Any = ()) -> list[tuple[float, bool]]:
        """Score of each item; those of pairs go to the harness's cache at once, for a run that is interrupted."""
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(items), desc="hilora: score", disable=None if items else True) as bar:
            for batch in score(self.router, routed, items, batch_size=self.batch_size, seed=self.seed):
                found |= batch
                for place in batch if pairs else ():
                    self.cache_hook.add_partial("loglikelihood", pairs[place], batch[place])
                bar.update(len(batch))
        return [found[place] for place in range(len(items))]

    def _generate(self, contexts: list[str], options: dict[str, Any], samples: int) -> list[Completion]:
        if samples > 1:
            options["num_return_sequences"] = samples
        with tqdm(total=len(contexts), desc="hilora: generate", disable=None) as bar:
            options["on_batch"] = lambda done, total: bar.update(done - bar.n)
            return self.router.generate(contexts, seed=self.seed, batch_size=self.batch_size, **options)

    def _options(self, given: str) -> dict[str, Any]:
        """The harness's generation options, as JSON, as those of `HiLoRA.generate`."""
        options: dict[str, Any] = json.loads(given)
        lengths = [options.pop(name, None) for name in LENGTHS]
        options["max_new_tokens"] = int(next((n for n in lengths if n is not None), self.max_new_tokens))
        options["stop"] = [text for text in as_texts(options.pop("until", None)) if text]
        options.setdefault("do_sample", bool(options.get("temperature")))  # a temperature asks for samples
        if not options["do_sample"]:  # a task's file may say how to draw, and that nothing is drawn
            options = {name: value for name, value in options.items() if name not in SAMPLING}
        return options


def main() -> None:
    """Run the harness's command line; what hilora refuses is one line on stderr and exit code 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except HiloraError as error:
        print(f"hilora: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
