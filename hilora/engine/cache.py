"""What transformers calls a cache where it goes in and comes out."""

from __future__ import annotations

from transformers.generation.utils import GenerateDecoderOnlyOutput

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""Until version 5.23 it was past_key_values."""
