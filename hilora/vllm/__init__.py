"""The same routing inside vLLM, as a plugin."""
