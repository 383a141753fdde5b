"""Prompts in, answers with reasons out: the base model under the plan of each batch.

router = HiLoRA.from_pretrained(pool="pools/flan-mini")
for answer in router.generate(["...", "..."]):
    print(answer.text, answer.adapters, answer.rocs)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from hilora.base.devices import reading_device
from hilora.base.embed import Embedder
from hilora.base.models import load_base, parse_dtype
from hilora.base.prompts import (
    Names,
    Prompt,
    as_list,
    as_texts,
    check_lengths,
    encode_prompts,
    query_texts,
    template_id,
)
from hilora.engine.attachment import check_form
from hilora.engine.batching import Batching
from hilora.engine.call import Call
from hilora.engine.compiled.options import Compile, options_of
from hilora.engine.dispatch import answers as answers_of
from hilora.engine.lanes import Lanes
from hilora.engine.sampling import check_one_answer, check_request
from hilora.engine.stream import Pieces
from hilora.errors import InputError, ModelError
from hilora.methods import DEFAULT_METHOD
from hilora.methods.lookup import get_method
from hilora.planner import Planner, Routed
from hilora.pool.memory import LIMIT, Memory, parse_bytes
from hilora.pool.pool import Pool
from hilora.pool.source import find_pool
from hilora.pool.view import PoolView
from hilora.types import Choice, Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HiLoRA:
    """A base model that answers each prompt with the adapters that fit it.

    Any number of threads may ask at once: their prompts share the model step by step. Use `from_pretrained`.

    Args:
        model: a transformers model in eval mode; no value of it is ever changed.
        tokenizer: its tokenizer.
        planner: routes prompts over a pool.
        packed: lay the weights of modules that read the same input into one block, where adapters change one of them:
            faster, and the model's parameters become views of these blocks.
        form: how deltas are worked out (`attachment.FORMS`): "fast", or "plain", by `compose.delta.plain` alone.
        kv_memory: for the keys and values of all prompts at once, in bytes or as "2GB"; prompts wait for room.
            Default: half of the memory that is free.
        compile: "off"; "step": the steps after a prompt is read are compiled, each at its first use or by `compile`;
            or which ones (`Compile`). What they do not fit is served by the others.

    Raises:
        MismatchError: the pool was made for another base model.
        ModelError: the model is in training mode, or its embedding is offloaded.
        InputError: there is no such form, or it packs no weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        planner: Planner,
        *,
        packed: bool = False,
        form: str = "fast",
        kv_memory: int | str | None = None,
        compile: str | Compile = "off",
    ) -> None:
        check_form(form, packed)
        compiled = options_of(compile)
        if compiled is not None and form != "fast":
            raise InputError(
                f"compile is for form='fast'; the form {form!r} is never compiled. Leave one of them out."
            )
        if model.training:
            raise ModelError("The model is in training mode. Call model.eval() first.")
        planner.pool.base.check_model(model, template_id(tokenizer))
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.planner = planner
        planner.device = planner.device or reading_device(model)
        self.memory: Memory = Memory() if planner.memory is None else planner.memory
        self.lanes = Lanes(
            model, tokenizer, planner, self.memory, form=form, packed=packed, kv_memory=kv_memory, compile=compiled
        )

    def __repr__(self) -> str:
        pool, method = self.planner.pool, self.planner.method.name
        return f"{type(self).__name__}(base {pool.base.name!r}, method {method!r}, {pool!r})"

    @classmethod
    def from_pretrained(
        cls,
        base: str | PreTrainedModel | None = None,
        pool: str | Path | PoolView | None = None,
        method: str = DEFAULT_METHOD,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        embedder: Embedder | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        adapter_memory: int | str = LIMIT,
        packed: bool | None = None,
        form: str = "fast",
        kv_memory: int | str | None = None,
        compile: str | Compile = "off",
        **method_options: Any,
    ) -> HiLoRA:
        """Load a base model and a pool.

        Args:
            base: a name, a path or a loaded model; default: the base that the pool was made for.
            pool: a folder, the name of an installed pool ("flan-mini"), or an opened pool; default: ./pool if
                there is one, else flan-mini.
            method: a name in `hilora.METHODS`; "hilora" is the paper's.
            tokenizer: needed with a loaded model only.
            embedder: the pool's, if loaded already, which stays where it is; default: loaded where the base model is.
            dtype: of the base model; default: bf16 where it is fast, else fp32; fp16 with 8 bits.
            device_map: as in transformers; default: CUDA if there is one, else the CPU.
            quantization_config: of the base model, as in transformers, or "4bit" or "8bit".
            adapter_memory: for adapters between batches, in bytes or as "512MB"; the least used are given up.
            packed: lay weights of modules that read the same input into one block, which is faster; no value changes.
                Default: where the model is loaded here, not where it is yours.
            form: "fast", or "plain": the one equation as it stands, for comparison.
            kv_memory: for the keys and values of all prompts at once; default: half of what is free.
            compile: "off", "step", or a `Compile`: which steps are compiled.
            method_options: options of the method, e.g. gamma=0.4.

        Raises:
            HiloraError: what is wrong, and what to do; nothing is half loaded.
        """
        built = get_method(method, **method_options)
        check_form(form, bool(packed))
        loading = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization_config}
        named = base is None or isinstance(base, str)
        if not named and (idle := [option for option, value in loading.items() if value is not None]):
            raise InputError(f"{idle[0]} is for a base that is loaded here; give it where you load yours.")
        opened = pool if isinstance(pool, PoolView) else Pool.open(find_pool(pool))
        wanted = dtype if base is None or isinstance(base, str) else base.dtype
        exact = wanted is not None and parse_dtype(wanted).itemsize > 2  # then embeddings are, too
        memory = Memory(adapter_memory)
        kv_memory = None if kv_memory is None else parse_bytes(kv_memory)
        planner = Planner(opened, built, embedder, memory, torch.float32 if exact else None)
        if base is None or isinstance(base, str):
            model, own = load_base(base or opened.base.name, **loading)
            return cls(
                model,
                tokenizer or own,
                planner,
                packed=packed is not False and form == "fast",
                form=form,
                kv_memory=kv_memory,
                compile=compile,
            )
        if tokenizer is None:
            raise InputError("A loaded model needs its tokenizer: pass tokenizer=...")
        return cls(base, tokenizer, planner, packed=bool(packed), form=form, kv_memory=kv_memory, compile=compile)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        allow: Names = None,
        deny: Names = None,
        labels: Sequence[str] | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int, int], None] | None = None,
        on_answers: Callable[[dict[int, list[Completion]]], None] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Answer prompts; each is routed by itself, batches may mix anything.

        Args:
            prompts: texts or chats (lists of {"role", "content"}); one alone may come without a list.
            max_new_tokens: at most this many tokens per answer.
            seed: of the ROC allocation and of sampling; the same seed and prompt give the same answer.
            stop: texts that end an answer; they are not part of it.
            allow, deny: adapters to keep to, or to leave out: a list for all prompts, or one per prompt.
            labels: the right adapter of each prompt, for the oracle.
            batch_size: prompts that share a forward pass, at most.
            on_batch: called with (prompts done, prompts in all).
            on_answers: called with answers by the prompt's place, as they end.
            options: any other generation option of transformers (do_sample, temperature, num_beams,
                num_return_sequences, repetition_penalty, streamer, ...).

        Returns:
            One completion per prompt in the prompts' order (`num_return_sequences` of them, in a row).

        Raises:
            InputError: an empty or too long prompt, or an option that does not exist; before anything runs.
        """
        listed = as_list(prompts)
        call = self._call(
            listed, max_new_tokens=max_new_tokens, seed=seed, stop=stop, allow=allow, deny=deny, labels=labels,
            batch_size=batch_size, **options,
        )  # fmt: skip
        answers: dict[int, list[Completion]] = {}
        order = sorted(call.encoded, key=lambda row: -len(call.encoded[row]))  # like lengths are read together
        for row, found in answers_of(self.lanes, call, order, batch_size):
            answers[row] = found
            if on_answers:
                on_answers({row: found})
            if on_batch:
                on_batch(len(answers), len(listed))
        return [completion for row in range(len(listed)) for completion in answers[row]]

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str, None, Completion]:
        """Answer one prompt piece by piece; the generator's return value is the completion.

        To leave it (`break`, `close()`, an error, Ctrl-C) ends the generation at the next token.

        Args:
            prompt: a text or a chat.
            options: as in `generate`, but for those that give several answers.

        Raises:
            InputError: as in `generate`, at the first piece.
        """
        check_one_answer(options, self.model)
        events: SimpleQueue[Any] = SimpleQueue()
        whole = Completion("", "length")
        pieces = Pieces(events.put)
        call = self._call([prompt], **({"max_new_tokens": 128, "batch_size": 1} | options))
        for event in answers_of(self.lanes, replace(call, events=events, see=pieces.see), [0], 1):
            if isinstance(event, str):
                yield event
            else:
                _, (whole,) = event
        pieces.give(whole.text)
        while not events.empty():
            yield events.get()
        return whole

    def over(self, pool: PoolView) -> HiLoRA:
        """The same model, engine and method over another view of the pool; what runs goes on over its own."""
        other = copy(self)
        other.planner = self.planner.over(pool)
        other.lanes = self.lanes.over(other.planner)
        return other

    @contextmanager
    def attached(self, routed: Routed, rows: Sequence[int], seed: int = 0) -> Iterator[list[tuple[Choice, ...]]]:
        """The model under the plan of some routed rows, for a batch of those rows in that order.

        Others wait meanwhile. Yields each row's choices.
        """
        with self.lanes.engine.alone():
            serve, choices, _ = self.lanes.planned(routed, rows, seed)
            with serve(range(len(rows))):
                yield choices

    def compile(self, on_step: Callable[[int, int], None] | None = None) -> None:
        """Compile all steps now that `compile` named, so that no prompt waits for it.

        Args:
            on_step: called with (steps done, steps in all).

        Raises:
            ModelError: this base model cannot be compiled.
            InputError: nothing was to be compiled, or there is no memory for its keys and values.
        """
        if self.lanes.fixed is None:
            raise InputError('Nothing is to be compiled: this HiLoRA was made with compile="off".')
        self.lanes.batching  # noqa: B018  # makes room for their keys and values
        with self.lanes.engine.alone(), torch.inference_mode():
            self.lanes.fixed.compile(on_step)

    @property
    def batching(self) -> Batching:
        """How rows may run on this base model: "open", "closed" or "alone" (`engine.batching`)."""
        return self.lanes.batching

    def answer_batch(
        self,
        routed: Routed,
        rows: Sequence[int],
        encoded: Sequence[list[int]],
        *,
        seed: int = 0,
        stops: Sequence[str] = (),
        max_new_tokens: int = 128,
        **options: Any,
    ) -> list[list[Completion]]:
        """Answers of one batch of rows that are routed already: `generate` without its checks.

        Args:
            routed: from the planner.
            rows: which of its rows.
            encoded: token ids of their prompts.
            seed, stops, max_new_tokens, options: as in `generate`.
        """
        known = dict(zip(rows, encoded, strict=True))
        call = Call(routed, known, seed, stops, options | {"max_new_tokens": max_new_tokens})
        found = dict(answers_of(self.lanes, call, rows, len(rows)))
        return [found[row] for row in rows]

    def _call(
        self,
        listed: Sequence[Prompt],
        *,
        max_new_tokens: int,
        batch_size: int,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        allow: Names = None,
        deny: Names = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Call:
        """What is asked, checked and routed."""
        stops = [*as_texts(stop), *as_texts(options.pop("stop_strings", None))]
        if labels is not None and len(labels) != len(listed):
            raise InputError(f"labels name {len(labels)} adapters for {len(listed)} prompts; give one each.")
        check_request(stops, options, self.model, max_new_tokens=max_new_tokens, batch_size=batch_size)
        options |= {"max_new_tokens": max_new_tokens}
        if not listed:
            return Call(Routed([], None, self.planner.source, []), {}, seed, stops, options)
        query_texts(listed)  # refuses what is empty or no chat
        encoded = encode_prompts(listed, self.tokenizer)
        check_lengths(encoded, max_new_tokens, self.model.config)
        routed = self.planner.route(listed, labels=labels, allow=allow, deny=deny)
        return Call(routed, dict(enumerate(encoded)), seed, stops, options)
