"""Base models by name or path, loaded: config, tokenizer, weights, each refused in one line where it cannot be.

Nothing here runs code that comes with a model: `trust_remote_code` is False wherever transformers takes it. Left
out, transformers would ask on standard input.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.base.embedded import BASES, Embedded, cache_dir
from hilora.base.pointers import refuse_pointers
from hilora.base.quantised import INSTALLED, loading, refuse_twice
from hilora.errors import HiloraError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OWN_CODE = (
    "it needs code of its own (auto_map in its files), which is never run. Choose a model that transformers itself "
    "knows, or update transformers."
)


@contextmanager
def told_in_a_line(what: str, remedy: str) -> Iterator[None]:
    """Make one line of whatever a reader of somebody's files raises.

    Args:
        what: is wrong, with the name of the model.
        remedy: what to do.

    Raises:
        ModelError: the reader failed; or the model needs code of its own, which then is what is wrong.
    """
    try:
        yield
    except HiloraError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{what}: {OWN_CODE}") from error
        raise ModelError(f"{what}: {first_line(error).rstrip('.:')}. {remedy}") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars and its report of unused weights, which say nothing to a user here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def resolve_base(name: str) -> str:
    """A transformers name or path for a base; the embedded default is converted on its first use."""
    return str(_converted(name, BASES[name])) if name in BASES else name


def _converted(name: str, embedded: Embedded) -> Path:
    """The embedded GGUF as safetensors in bf16 in the cache; about 30 s, once, safe to interrupt."""
    from filelock import FileLock

    source = embedded.find()
    target = cache_dir() / f"{name}-{embedded.wheel.split('==')[1]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if target.is_dir():  # another process was faster
            return target
        convert(source, target)
    return target


def convert(source: Path, target: Path) -> None:
    """Write a GGUF as safetensors in bf16, with its tokenizer, to a new folder; safe to interrupt.

    Raises:
        ModelError: it cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
            )
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"{source.name} cannot be read: {first_line(error)} Run: pip install 'hilora[default]'"
        ) from error
    # transformers refuses to save what it believes to be still quantised
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_loading():
        model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    tokenizer.save_pretrained(partial)
    partial.rename(target)


def default_dtype(device: str = "cpu") -> torch.dtype:
    """bf16 where the processor multiplies it natively, else fp32."""
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""
    return torch.bfloat16 if fast == "AVX512" and _has_bf16() else torch.float32


def _has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_config(name: str, *, local: bool = False) -> Any:
    """The transformers config of a base model by name or path.

    Args:
        name: one of `BASES`, a transformers name, or a path.
        local: fetch nothing.

    Raises:
        ModelError: there is no such model, or it needs code of its own.
    """
    from transformers import AutoConfig

    path = resolve_base(name)
    refuse_pointers(Path(path))
    remedy = f"Give a folder with a config.json, a name on the Hugging Face Hub, or one of {sorted(BASES)}."
    with told_in_a_line(f"No base model {name!r}", remedy):
        return AutoConfig.from_pretrained(path, local_files_only=local, trust_remote_code=False)


def auto_class(config: Any, name: str) -> Any:
    """transformers' class that loads a config: encoder-decoder or causal.

    Raises:
        ModelError: it is neither.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    found: Any = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    if type(config) not in found._model_mapping:
        if found.__name__ in (getattr(config, "auto_map", None) or {}):
            raise ModelError(f"The base model {name!r} cannot be used: {OWN_CODE}")
        raise ModelError(
            f"The base model {name!r} is a {config.model_type}, which transformers does not load as a causal or an "
            f"encoder-decoder language model ({found.__name__}). Choose a language model."
        )
    return found


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model by name or path.

    Raises:
        ModelError: it has none, or none that can be read.
    """
    from transformers import AutoTokenizer

    remedy = "Put the tokenizer's files (tokenizer.json and tokenizer_config.json) beside its config.json."
    with told_in_a_line(f"The base model {name!r} has no tokenizer that can be read", remedy):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_base(name), trust_remote_code=False)
    return found


def load_base(
    name: str,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer by name or path, in eval mode.

    Args:
        name: one of `BASES`, a transformers name, or a path.
        dtype: torch dtype or its name; default: bf16 where it is fast, else fp32; fp16 with 8 bits.
        device_map: as in transformers; default: CUDA if there is one, else the CPU.
        quantization_config: as in transformers, or "4bit" or "8bit" (`base.quantised.BITS`); default: none.

    Raises:
        ModelError: there is no such model, or it cannot be loaded or quantised so.
        InputError: a dtype or quantisation that makes no sense.
    """
    import torch

    if device_map is None:
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    usual = default_dtype("cuda" if torch.cuda.is_available() and device_map != "cpu" else "cpu")
    asked, more = loading(quantization_config, None if dtype is None else parse_dtype(dtype), usual)
    config = load_config(name)
    refuse_twice(more.get("quantization_config"), config, name)
    auto = auto_class(config, name)
    tokenizer = load_tokenizer(name)
    path = resolve_base(name)
    quantised = more or getattr(config, "quantization_config", None)
    remedy = f"Check its files, and that there is memory for it{INSTALLED if quantised else ''}."
    with told_in_a_line(f"The base model {name!r} cannot be loaded", remedy), quiet_loading():
        model = auto.from_pretrained(path, dtype=asked, device_map=device_map, trust_remote_code=False, **more)
    return model.eval(), tokenizer


def parse_dtype(name: torch.dtype | str) -> torch.dtype:
    """A torch dtype from fp32, bf16, fp16 or torch's own names; a dtype as it is."""
    import torch

    from hilora.errors import UnknownNameError

    if isinstance(name, torch.dtype):
        return name
    dtypes = {
        "fp32": torch.float32,
        "float32": torch.float32,
        "bf16": torch.bfloat16,
        "bfloat16": torch.bfloat16,
        "fp16": torch.float16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if name not in dtypes:
        raise UnknownNameError("dtype", name, dtypes)
    return dtypes[name]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for one-line messages."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
