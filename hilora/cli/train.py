"""hilora train: what can be trained, in the order in which it is listed."""

from __future__ import annotations

import typer

from hilora.cli.train_folders import combine, lora, retriever
from hilora.cli.train_parts import lorahub, moe, phatgoose, router
from hilora.cli.usage import Commands

app = typer.Typer(cls=Commands, help="Train adapters, and what some methods need trained.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Train adapters, and what some methods need trained."""


for command in (lora, router, moe, phatgoose, lorahub, combine, retriever):
    app.command()(command)
