"""Prompts in, answers with reasons out: the base model under the plan of each batch.

router = HiLoRA.from_pretrained(pool="pools/flan-mini")
for answer in router.generate(["...", "..."]):
    print(answer.text, answer.adapters, answer.rocs)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hilora.base.embed import Embedder
from hilora.base.models import first_line, load_base, parse_dtype
from hilora.base.modules import placements
from hilora.base.padding import pad_batch
from hilora.base.prompts import (
    Names,
    Prompt,
    as_list,
    as_texts,
    check_lengths,
    encode_prompts,
    pad_id,
    query_texts,
    template_id,
)
from hilora.base.rows import rows_apart
from hilora.compose.stack import stack_sites
from hilora.engine.attachment import FORMS, check_form
from hilora.engine.batching import Batching, generate_rows
from hilora.engine.ended import row_ends
from hilora.engine.probe import batching_of
from hilora.engine.sampling import SeededSampling, check_one_answer, check_request, split_sampling
from hilora.engine.stages import Serve, can_stage
from hilora.engine.stream import follow, turn
from hilora.errors import InputError, ModelError
from hilora.methods import DEFAULT_METHOD
from hilora.methods.lookup import get_method
from hilora.planner import Planner, Routed
from hilora.pool.memory import LIMIT, Memory
from hilora.pool.pool import Pool
from hilora.pool.source import find_pool
from hilora.pool.view import PoolView, Source
from hilora.route.allocate import row_stream
from hilora.types import Choice, Completion, Factors, Plan, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HiLoRA:
    """A base model that answers each prompt with the adapters that fit it.

    One call runs at a time (others wait): a model carries one plan. Use `from_pretrained`.

    Args:
        model: a transformers model in eval mode; no value of it is ever changed.
        tokenizer: its tokenizer.
        planner: routes prompts over a pool.
        packed: lay the weights of modules that read the same input into one block, where adapters change one of them:
            faster, and the model's parameters become views of these blocks.
        form: how deltas are worked out (`attachment.FORMS`): "fast", or "plain", by `compose.delta.plain` alone.

    Raises:
        MismatchError: the pool was made for another base model.
        ModelError: the model is in training mode.
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
    ) -> None:
        check_form(form, packed)
        if model.training:
            raise ModelError("The model is in training mode. Call model.eval() first.")
        planner.pool.base.check_model(model, template_id(tokenizer))
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.planner = planner
        self.memory: Memory = Memory() if planner.memory is None else planner.memory
        self._placements = placements(model)
        self._packed, self._form = packed, form
        self._lock = threading.Lock()

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
        **method_options: Any,
    ) -> HiLoRA:
        """Load a base model and a pool.

        Args:
            base: a name, a path or a loaded model; default: the base that the pool was made for.
            pool: a folder, the name of an installed pool ("flan-mini"), or an opened pool; default: ./pool if
                there is one, else flan-mini.
            method: a name in `hilora.METHODS`; "hilora" is the paper's.
            tokenizer: needed with a loaded model only.
            embedder: the pool's, if loaded already.
            dtype: of the base model; default: bf16 where it is fast, else fp32; fp16 with 8 bits.
            device_map: as in transformers; default: CUDA if there is one, else the CPU.
            quantization_config: of the base model, as in transformers, or "4bit" or "8bit".
            adapter_memory: for adapters between batches, in bytes or as "512MB"; the least used are given up.
            packed: lay weights of modules that read the same input into one block, which is faster; no value changes.
                Default: where the model is loaded here, not where it is yours.
            form: "fast", or "plain": the one equation as it stands, for comparison.
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
        planner = Planner(opened, built, embedder, memory, torch.float32 if exact else None)
        if base is None or isinstance(base, str):
            model, own = load_base(base or opened.base.name, **loading)
            return cls(model, tokenizer or own, planner, packed=packed is not False and form == "fast", form=form)
        if tokenizer is None:
            raise InputError("A loaded model needs its tokenizer: pass tokenizer=...")
        return cls(base, tokenizer, planner, packed=bool(packed), form=form)

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
            batch_size: prompts per forward pass.
            on_batch: called with (prompts done, prompts in all).
            on_answers: called with each batch's answers by the prompt's place, long prompts first.
            options: any other generation option of transformers (do_sample, temperature, num_beams,
                num_return_sequences, repetition_penalty, streamer, ...).

        Returns:
            One completion per prompt in the prompts' order (`num_return_sequences` of them, in a row).

        Raises:
            InputError: an empty or too long prompt, or an option that does not exist; before anything runs.
        """
        listed = as_list(prompts)
        stops = [*as_texts(stop), *as_texts(options.pop("stop_strings", None))]
        if labels is not None and len(labels) != len(listed):
            raise InputError(f"labels name {len(labels)} adapters for {len(listed)} prompts; give one each.")
        check_request(stops, options, self.model, max_new_tokens=max_new_tokens, batch_size=batch_size)
        if not listed:
            return []
        query_texts(listed)  # refuses what is empty or no chat
        encoded = encode_prompts(listed, self.tokenizer)
        check_lengths(encoded, max_new_tokens, self.model.config)
        routed = self.planner.route(listed, labels=labels, allow=allow, deny=deny)

        answers: dict[int, list[Completion]] = {}
        order = sorted(range(len(listed)), key=lambda i: -len(encoded[i]))  # like lengths share a batch
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found = self.answer_batch(
                routed,
                rows,
                [encoded[r] for r in rows],
                seed=seed,
                stops=stops,
                max_new_tokens=max_new_tokens,
                **options,
            )
            answers.update(batch := dict(zip(rows, found, strict=True)))
            if on_answers:
                on_answers(batch)
            if on_batch:
                on_batch(len(answers), len(listed))
        return [completion for i in range(len(listed)) for completion in answers[i]]

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
        criteria = options.pop("stopping_criteria", None) or ()
        return (
            yield from follow(lambda seen: self.generate([prompt], stopping_criteria=[*criteria, seen], **options)[0])
        )

    @contextmanager
    def attached(self, routed: Routed, rows: Sequence[int], seed: int = 0) -> Iterator[list[tuple[Choice, ...]]]:
        """The model under the plan of some routed rows, for a batch of those rows in that order.

        Others wait meanwhile. Yields each row's choices.
        """
        with self._lock:
            serve, choices, _ = self._planned(routed, rows, seed)
            with serve(range(len(rows))):
                yield choices

    @property
    def batching(self) -> Batching:
        """Whether rows run "open", "closed" or "alone" on this base model (`engine.batching`)."""
        with self._lock:
            return batching_of(self.model, pad_id(self.tokenizer))

    def _planned(
        self, routed: Routed, rows: Sequence[int], seed: int
    ) -> tuple[Serve, list[tuple[Choice, ...]], bool]:
        """What makes the model serve some of these rows, each row's choices, and whether they have to run one by one.

        The lock must be held.
        """
        if routed.route is None:
            return lambda places: nullcontext(), [() for _ in rows], False
        plan, gate = self.planner.plan(routed, rows, seed), self.planner.method.gate
        assert gate is not None
        sites = self._stack(plan, routed.source)
        serve = FORMS[self._form](self.model, sites, plan, gate, self._packed)
        return serve, self.planner.choices(routed, rows, plan), rows_apart(self.model, sites, plan)

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
        name, copies = self.planner.method.name, int(options.get("num_return_sequences", 1))
        asked = [place for place, row in enumerate(rows) if row not in routed.silent]
        answers: Iterator[list[Completion]] = iter(())
        if asked:
            few = [rows[place] for place in asked], [encoded[place] for place in asked]
            answers = iter(self._answer(routed, *few, seed, stops, max_new_tokens=max_new_tokens, **options))
        return [
            [Completion("", "abstain", (), name, len(ids), 0, routed.notes[row])] * copies
            if row in routed.silent
            else next(answers)
            for row, ids in zip(rows, encoded, strict=True)
        ]

    def _answer(
        self,
        routed: Routed,
        rows: Sequence[int],
        encoded: Sequence[list[int]],
        seed: int,
        stops: Sequence[str],
        **options: Any,
    ) -> list[list[Completion]]:
        """Answers of rows none of which stays unanswered."""
        ids, mask = self._pad(encoded)
        kwargs, sampling = split_sampling(options, self.model.generation_config)
        answers = int(kwargs.get("num_return_sequences", 1))
        if sampling is not None:
            streams = [row_stream(seed, routed.texts[r], f"token {n}") for r in rows for n in range(answers)]
            kwargs["logits_processor"] = [*kwargs.pop("logits_processor", []), SeededSampling(streams, **sampling)]
            if answers > 1:  # greedy search returns one answer per row, so the rows are multiplied here
                kwargs.pop("num_return_sequences")
                ids, mask = ids.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
        if kwargs.get("pad_token_id") is None:
            kwargs["pad_token_id"] = pad_id(self.tokenizer)
        is_staged = can_stage(self.model, kwargs)
        ending = row_ends(self.model, self.tokenizer, stops, kwargs, ids.shape[1])
        with turn(self._lock, ending.follow), torch.inference_mode():
            batching = batching_of(self.model, pad_id(self.tokenizer))
            serve, choices, apart = self._planned(routed, rows, seed)
            if apart:
                batching = Batching.ALONE
            elif batching is Batching.OPEN and not is_staged:
                batching = Batching.CLOSED
            copies = len(ids) // len(rows)
            try:
                new = generate_rows(
                    self.model,
                    ids,
                    mask,
                    kwargs,
                    lambda live: serve([place // copies for place in live]),
                    ending,
                    batching,
                )
            except ValueError as error:  # transformers' own checks of options that do not go together
                raise InputError(f"The generation options do not fit together: {first_line(error)}") from error
        said = [ending.answer(tokens, row) for row, tokens in enumerate(new.tolist())]
        name, completions = self.planner.method.name, []
        for place, (row, why) in enumerate(zip(rows, choices, strict=True)):
            texts = said[place * answers : (place + 1) * answers]
            asked, note = len(encoded[place]), routed.notes[row]
            completions += [[Completion(t.text, t.finish_reason, why, name, asked, t.tokens, note) for t in texts]]
        return completions

    def _pad(self, encoded: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        left = not self.model.config.is_encoder_decoder
        ids, mask = pad_batch(encoded, pad_id(self.tokenizer), left=left)
        return ids.to(self.model.device), mask.to(self.model.device)

    def _stack(self, plan: Plan, source: Source) -> dict[str, Site]:
        """The plan's adapters stacked site by site, kept for the next batch that uses the same."""
        contents = [source.entries[i].hash for i in plan.ids]
        return self.memory.get(
            f"stack {' '.join(contents)}",
            lambda: stack_sites([self._factors(source, content) for content in contents], self._placements),
        )

    def _factors(self, source: Source, content: str) -> Factors:
        """An adapter's factors, kept for the next batch."""
        return self.memory.get(content, lambda: source.factors(content))
