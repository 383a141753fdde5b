"""The methods by their papers' names: read `table` first."""

DEFAULT_METHOD = "hilora-plus"
"""What serves where nothing else is asked for; the paper's own method is "hilora"."""
