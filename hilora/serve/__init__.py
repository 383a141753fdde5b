"""A pool behind HTTP: prompts without labels in, answers with reasons out, adapters uploaded meanwhile."""
