"""Base models whose weights are kept in fewer bits: what transformers is told, and what is refused.

Adapters are not quantised: they compute in the model's dtype, beside whatever their modules do inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hilora.errors import InputError, ModelError, UnknownNameError

if TYPE_CHECKING:
    import torch

BITS: Mapping[str, Mapping[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8bit": {"load_in_8bit": True},
}
"""What bitsandbytes is told, by the names that people type; 4-bit products are made in the model's dtype."""
INSTALLED = (
    ", and that the package of its quantisation is installed (bitsandbytes: pip install 'hilora[quantize]') and has "
    "kernels for this device"
)
"""More to look at where a quantised base does not load."""


def quantisation(given: Any, dtype: torch.dtype) -> Any:
    """transformers' object for what somebody gave.

    Args:
        given: one of transformers' configs of quantisation, its fields as a mapping, or a name in `BITS`.
        dtype: of the rest of the model.

    Raises:
        UnknownNameError: no such name, or no such method of quantisation.
        InputError: it is something else, or quantises nothing.
    """
    from transformers import BitsAndBytesConfig, QuantoConfig
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if isinstance(given, str):
        if given not in BITS:
            raise UnknownNameError("quantisation", given, BITS)
        return BitsAndBytesConfig(**BITS[given], bnb_4bit_compute_dtype=dtype)
    found: Any = given
    if isinstance(given, Mapping):
        method = given.get("quant_method")
        if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            raise UnknownNameError("method of quantisation", str(method), AUTO_QUANTIZATION_CONFIG_MAPPING)
        found = AutoQuantizationConfig.from_dict(dict(given)) if method else BitsAndBytesConfig(**given)
    if not isinstance(found, QuantizationConfigMixin):
        raise InputError(
            f"quantization_config is a config of transformers (BitsAndBytesConfig, ...), its fields, or one of "
            f"{', '.join(BITS)}; got {given!r:.60}."
        )
    few = getattr(found, "weights", None)
    if isinstance(found, QuantoConfig) and few not in (None, "int8", "float8"):
        raise InputError(
            f"quanto's {few} weights cannot run under torch.inference_mode, which generation uses. Take its int8, or "
            f"bitsandbytes' 4bit."
        )
    if isinstance(found, BitsAndBytesConfig) and not found.is_quantizable():
        raise InputError("This BitsAndBytesConfig quantises nothing. Give it load_in_4bit=True or load_in_8bit=True.")
    return found


def loading(given: Any, dtype: torch.dtype | None, usual: torch.dtype) -> tuple[torch.dtype, dict[str, Any]]:
    """The dtype to load a base in, and what `from_pretrained` is told besides.

    Where bitsandbytes multiplies in 8 bits and no dtype is asked for, it is fp16: whatever else it gets it casts to
    that, and says so at every product.

    Args:
        given: as in `quantisation`; None for none.
        dtype: that is asked for.
        usual: where none is.

    Raises:
        InputError: as in `quantisation`.
    """
    import torch

    if given is None:
        return dtype or usual, {}
    found = quantisation(given, dtype or usual)
    if getattr(found, "load_in_8bit", False):
        usual = torch.float16
    return dtype or usual, {"quantization_config": found}


def refuse_twice(given: Any, config: Any, name: str) -> None:
    """Refuse to quantise a base that comes quantised, unless `given` says how such a base is loaded.

    Args:
        given: transformers' object, None for none.
        config: of the base.
        name: of the base.

    Raises:
        ModelError: transformers would leave `given` out.
    """
    comes = getattr(config, "quantization_config", None)
    if comes and given is not None and not hasattr(given, "get_loading_attributes"):
        raise ModelError(
            f"The base model {name!r} comes quantised, and {type(given).__name__} would be left out. Give no "
            f"quantisation for it, or the base that it was made of."
        )


def quantised_as(model: Any) -> dict[str, Any] | None:
    """How a loaded model is quantised, as transformers writes it down; None where it is not."""
    found = getattr(model.config, "quantization_config", None)
    return None if found is None else dict(found if isinstance(found, Mapping) else found.to_diff_dict())
