"""hilora figures: pictures of pools, answers and results, in the order in which they are listed."""

from __future__ import annotations

import typer

from hilora.cli.figures_answers import activation, weights
from hilora.cli.figures_pools import rocs, similarity
from hilora.cli.figures_results import retrieval, selection
from hilora.cli.usage import Commands

app = typer.Typer(cls=Commands, no_args_is_help=True)


@app.callback()
def group() -> None:
    """Draw pools, answers and results; every figure as PNG and SVG, its numbers as JSON."""


for command in (rocs, activation, weights, selection, similarity, retrieval):
    app.command()(command)
