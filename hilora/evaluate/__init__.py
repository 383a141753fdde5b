"""Measuring answers: metrics as in the papers."""
