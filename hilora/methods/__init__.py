"""The methods by their papers' names: read `table` first."""
