"""Sequence level: from a prompt's embedding to the adapters that may serve it."""
