"""What vLLM's API server itself goes by."""

from __future__ import annotations

from typing import Any


def served_names(app: Any) -> list[str]:
    """The names of the base model, then those of the LoRAs that vLLM was given."""
    models = app.state.openai_serving_models
    return [*(model.name for model in models.base_model_paths), *models.lora_requests]
