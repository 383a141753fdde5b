"""What is done at each hooked name: requests bring compositions, wait for room, and use them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any

from hilora import __version__
from hilora.errors import MismatchError
from hilora.vllm.admission import Admission
from hilora.vllm.folders import number_of
from hilora.vllm.front import Front, salted
from hilora.vllm.places import Row
from hilora.vllm.private.layers import Wrapped, lay, prepare
from hilora.vllm.private.names import CPU, INPUTS, MANAGER, MIXIN, SCHEDULER, V1, V2, V2_STATE, Stock, wrap
from hilora.vllm.wire import FIELD, Composition, WireError, encode, seen


class Active(set[Any]):
    """LoRAs of a step, with the compositions of its rows."""

    rows: Sequence[Row]


def composition_of(params: Any) -> Composition | None:
    """What a request uses, by its sampling parameters."""
    value = (getattr(params, "extra_args", None) or {}).get(FIELD)
    return None if value is None else seen(value)


def contents_of(compositions: Sequence[Composition | None]) -> set[str]:
    """The adapters of several requests."""
    return {part.content for composition in compositions if composition for part in composition.parts}


def install(front: Front) -> None:
    """Hook everything; what is hooked already stays as it is."""
    install_front(front)
    install_scheduler(front)
    install_worker(front)
    install_v1()
    install_v2()
    install_base_rows()


def install_front(front: Front) -> None:
    """Where requests come in."""

    def start(stock: Stock, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        lora = vllm_config.lora_config
        front.check_start(
            vllm_config.model_config.model,
            None if lora is None else (lora.max_loras, lora.max_lora_rank),
        )
        if lora.enable_tower_connector_lora:
            raise MismatchError(
                "Compositions are for language models. Start vLLM without --enable-tower-connector-lora."
            )
        stock(self, vllm_config, *args, **kwargs)

        async def with_context(*args: Any, **kwargs: Any) -> Any:  # the executor's threads know of no request
            work = functools.partial(copy_context().run, self.process_inputs, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self.renderer._executor, work)

        self.process_inputs_async = with_context

    def process(stock: Stock, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        composition = front.take(getattr(params, "extra_args", None), kwargs.get("lora_request") is not None)
        if composition is not None:
            if not hasattr(params, "extra_args"):
                raise WireError("Compositions are for generation; the request asks for something else.")
            front.check(composition, self.lora_config.max_loras, self.lora_config.max_lora_rank)
        request = stock(self, request_id, prompt, params, *args, **kwargs)
        if request.sampling_params is not None:
            kept = {key: own for key, own in (request.sampling_params.extra_args or {}).items() if key != FIELD}
            if composition is not None:
                kept[FIELD] = encode(composition)
            request.sampling_params.extra_args = kept or None
        request.cache_salt = salted(request.cache_salt, composition)
        return request

    def compute_hash(stock: Stock, *args: Any, **kwargs: Any) -> str:
        found = str(stock(*args, **kwargs))
        return hashlib.sha256(f"{found} hilora {__version__} {front.num_places}".encode()).hexdigest()[: len(found)]

    wrap(f"{INPUTS}.__init__", start)
    wrap(f"{INPUTS}.process_inputs", process)
    wrap("vllm.config:VllmConfig.compute_hash", compute_hash)


def install_scheduler(front: Front) -> None:
    """Where requests wait."""

    def used(request: Any) -> set[str]:
        own = contents_of([composition_of(request.sampling_params)])
        return own if request.lora_request is None else {f"number {request.lora_request.lora_int_id}"}

    def running(self: Any) -> set[str]:
        """The adapters of what runs; within a step requests only join."""
        key, held = (self.current_step, len(self.running)), vars(self).get("hilora_running")
        if held is None or held[0] != key:
            held = self.hilora_running = key, set[str]().union(*map(used, self.running))
        found: set[str] = held[1]
        return found

    def admit(stock: Stock, self: Any, request: Any) -> bool:
        if not stock(self, request):
            return False
        mine = used(request)
        if not mine:
            return True
        admission: Admission = vars(self).setdefault("hilora_admission", Admission())
        admission.forget(self.requests.__contains__)
        if not admission.may(request.request_id, mine, running(self), self.lora_config.max_loras):
            return False
        if request.lora_request is None and not all(map(front.folders.has, mine)):
            self.grammar_compile_error_reqs.add(request.request_id)  # it ends with an error, alone
            return False
        return True

    wrap(f"{SCHEDULER}._handle_blocked_waiting_request", admit)


def install_worker(front: Front) -> None:
    """Where steps are made."""
    from vllm.lora.layers import LoRAMapping, LoRAMappingType
    from vllm.lora.request import LoRARequest

    def load(stock: Stock, self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        loaded = stock(self, model, vllm_config, device)
        prepare(self.lora_manager._adapter_manager, vllm_config.lora_config, front.num_places)
        return loaded

    def activate(stock: Stock, self: Any, lora_id: int) -> bool:
        if new := stock(self, lora_id):
            lay(self, lora_id)
        return bool(new)

    def set_active(
        stock: Stock, self: Any, prompts: Any, tokens: Any, loras: Any, kind: Any = LoRAMappingType.LANGUAGE
    ) -> None:
        rows = loras.rows if isinstance(loras, Active) else vars(self).pop("hilora_rows", None)
        contents = contents_of([composition for composition, _ in rows or ()])
        asked = {LoRARequest(own, number_of(own), str(front.folders.path(own))) for own in contents}
        stock(self, prompts, tokens, set(loras) | asked, kind)
        manager = self.lora_manager._adapter_manager
        numbers = manager.lora_index_to_id
        if rows is None and isinstance(manager.hilora, Wrapped) and any(tokens):  # a step that is captured
            manager.hilora.pretend(LoRAMapping(tokens, (0,), is_prefill=True), numbers)
        else:
            manager.hilora.fill(rows or (), numbers, {own: numbers.index(number_of(own)) for own in contents})

    wrap(f"{MIXIN}.load_lora_model", load)
    wrap(f"{MIXIN}._set_active_loras", set_active)
    wrap(f"{MANAGER}.activate_adapter", activate)


def install_v1() -> None:
    """The runner that keeps requests with their parameters; the only one on the CPU."""

    def set_v1(stock: Stock, self: Any, input_batch: Any, num_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        ids = input_batch.req_ids[: len(num_tokens)]
        own = [composition_of(self.requests[each].sampling_params) for each in ids]
        self.hilora_rows = list(zip(own, map(int, num_tokens), strict=True))
        return stock(self, input_batch, num_tokens, *args, **kwargs)

    def dispatch_v1(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.lora_config and kwargs.get("force_num_active_loras") is None:
            own = contents_of(
                [composition_of(self.requests[each].sampling_params) for each in self.input_batch.req_ids]
            )
            if own:
                kwargs["force_num_active_loras"] = len(self.input_batch.lora_id_to_lora_request) + len(own)
        return stock(self, *args, **kwargs)

    wrap(f"{MIXIN}.set_active_loras", set_v1)
    wrap(f"{V1}._determine_batch_execution_and_padding", dispatch_v1)


def install_v2() -> None:
    """The runner that keeps of a request what it needs; the default where Triton is."""
    by_id: dict[str, Composition] = {}

    def add_v2(stock: Stock, self: Any, scheduler_output: Any) -> None:
        stock(self, scheduler_output)
        own = {new.req_id: composition_of(new.sampling_params) for new in scheduler_output.scheduled_new_reqs}
        by_id.update({request: composition for request, composition in own.items() if composition is not None})

    def remove_v2(stock: Stock, self: Any, req_id: str) -> Any:
        by_id.pop(req_id, None)
        return stock(self, req_id)

    def make_v2(stock: Stock, self: Any, req_ids: Any, idx_mapping: Any, num_tokens: Any) -> Any:
        prompts, tokens, loras = stock(self, req_ids, idx_mapping, num_tokens)
        active = Active(loras)
        active.rows = list(zip(map(by_id.get, req_ids), map(int, num_tokens), strict=True))
        return prompts, tokens, active

    def dispatch_v2(stock: Stock, lora_config: Any, lora_state: Any, req_ids: Any, dummy_run: bool) -> int:
        found = int(stock(lora_config, lora_state, req_ids, dummy_run))
        return found if dummy_run else found + len(contents_of(list(map(by_id.get, req_ids))))

    wrap(f"{V2}:GPUModelRunner.add_requests", add_v2)
    wrap(f"{V2}:GPUModelRunner._remove_request", remove_v2)
    wrap(f"{V2}:get_num_active_loras_for_dispatch", dispatch_v2)
    wrap(f"{V2_STATE}.make_lora_inputs", make_v2)


def install_base_rows() -> None:
    """On the CPU vLLM gives rows without a LoRA (-1) the last slot's weights; here they get none."""

    def shrink(stock: Stock, self: Any, y: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, y, *args, **kwargs)
        for site in () if self.no_lora else y:  # where none has any, nothing was done
            site[self.token_lora_indices < 0] = 0

    def keep(indices: str) -> Any:
        def around(stock: Stock, self: Any, y: Any, *args: Any, **kwargs: Any) -> None:
            base = getattr(self, indices) < 0
            before = y[base]
            stock(self, y, *args, **kwargs)
            y[base] = before

        return around

    wrap(f"{CPU}.add_shrink", shrink)
    wrap(f"{CPU}.add_lora_logits", keep("sampler_indices"))
    wrap(f"{CPU}.add_lora_embedding", keep("token_lora_indices"))
