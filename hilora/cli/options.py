"""Options that several commands share, and turning what people type into what the API takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any

import typer

from hilora.base.prompts import Prompt
from hilora.cli.prompts import read_asked
from hilora.errors import InputError

AdapterName = Annotated[str, typer.Argument(help="Adapter name.")]
PoolFolder = Annotated[str, typer.Option("--pool", help="Pool folder, which is written to.")]
PoolName = Annotated[
    str | None,
    typer.Option(
        "--pool",
        help="Pool folder, or an installed pool's name; default: ./pool if there is one, else flan-mini "
        "(its wheel, or pools/flan-mini in a clone).",
    ),
]
Method = Annotated[str, typer.Option("--method", "-m", help="See: hilora methods")]
Settings = Annotated[list[str] | None, typer.Option("--option", "-o", help="Method option, e.g. -o gamma=0.3")]
Allow = Annotated[list[str] | None, typer.Option("--allow", help="Use only this adapter (may be repeated).")]
Deny = Annotated[list[str] | None, typer.Option("--deny", help="Leave this adapter out (may be repeated).")]
Base = Annotated[str | None, typer.Option(help="Base model; default: the pool's.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: bf16 where it is fast.")]
Quantize = Annotated[str | None, typer.Option("--quantize", help="The base model's weights in 4bit or 8bit.")]
MaxNew = Annotated[int, typer.Option(min=1, help="At most this many tokens of the answer.")]
FiguresOut = Annotated[Path, typer.Option("--out", help="Folder for the figures and their numbers.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples per step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Longest = Annotated[int, typer.Option(min=8, help="Longer examples are left out.")]
Members = Annotated[int, typer.Option(min=2, help="Adapters that are drawn.")]
Evaluations = Annotated[int, typer.Option(min=1, help="Of the loss.")]


def split_names(names: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in names.split(",") if name.strip()]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """name=value pairs; values are read as JSON where they are JSON (numbers, true, null), else as text.

    Raises:
        InputError: a setting without "=".
    """
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"Expected name=value, got {setting!r}.")
        try:
            parsed[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            parsed[name.strip().replace("-", "_")] = value
    return parsed


OWN = ("max_new_tokens", "seed", "stop", "allow", "deny", "batch_size")
"""What `hilora generate` has options of its own for."""
OBJECTS = ("on_batch", "streamer", "logits_processor", "stopping_criteria")
"""What only Python can give."""


def parse_generation(settings: Sequence[str] | None, temperature: float | None) -> dict[str, Any]:
    """Generation options as they were given with -g, and what --temperature means.

    Args:
        settings: name=value pairs.
        temperature: above 0 draws tokens, 0 takes the likeliest; None leaves it to the others.

    Raises:
        InputError: something that is given twice, or a temperature below 0.
    """
    options = parse_settings(settings)
    for name in options:
        if name in OWN:
            raise InputError(f"-g {name} is given as an option of its own: --{name.replace('_', '-')}.")
        if name in OBJECTS:
            raise InputError(f"-g {name} takes an object, which a command line cannot give. Call generate in Python.")
    if temperature is None:
        return options
    twice = [name for name in ("temperature", "do_sample") if name in options]
    if twice:
        raise InputError(f"--temperature and -g {twice[0]} both say how tokens are chosen. Leave one of them out.")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature must be at least 0, where 0 takes the likeliest token; got {temperature}.")
    return options | ({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False})


def read_prompts(prompts: Sequence[str] | None, file: Path | None, *, one: bool = False) -> list[Prompt]:
    """Prompts from the command line, a file, or standard input; `cli.prompts.read_asked` says how.

    Raises:
        InputError: there are none, a line is none, or the file cannot be read.
    """
    return [asked.prompt for asked in read_asked(prompts, file, one=one)]


def quiet_transformers() -> None:
    """Our own bars and messages instead of transformers' and bitsandbytes'."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes.autograd").setLevel(ERROR)  # it warns at every product of a cast that is harmless
