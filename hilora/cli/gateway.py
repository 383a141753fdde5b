"""hilora gateway: routing in front of stock vLLM, for any OpenAI client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, no_type_check

import typer

from hilora.cli.opened import choose_method, open_pool
from hilora.cli.options import PoolName, Settings, quiet_transformers, split_names
from hilora.cli.show import console, status
from hilora.cli.usage import Commands
from hilora.errors import InputError

app = typer.Typer(cls=Commands, help="Route in front of stock vLLM.", invoke_without_command=True)
Adapters = Annotated[
    Path | None, typer.Option("--adapters", help="Folder that the gateway writes and vLLM reads; it is made.")
]
At = Annotated[str, typer.Option("--adapters-at", help="Path of that folder as vLLM sees it; default: the same.")]
Bytes = Annotated[str, typer.Option("--adapter-bytes", help="For that folder; those used longest ago go.")]
WITHOUT = "Give --adapters: a folder that the gateway writes and vLLM reads. Got none."


@app.callback()
@no_type_check  # typer hands over a context of another class than it asks for
def gateway(
    context: typer.Context,
    *,
    pool: PoolName = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="URL of a vLLM server (may be repeated).")
    ] = None,
    adapters: Adapters = None,
    adapters_at: At = "",
    resolve: Annotated[
        bool, typer.Option("--resolve", help="vLLM loads from that folder by itself (VLLM_LORA_RESOLVER_CACHE_DIR).")
    ] = False,
    method: Annotated[str, typer.Option("--method", "-m", help="selection, mixture, hilora-gs or hilora-plus.")] = (
        "selection"
    ),
    option: Settings = None,
    methods: Annotated[
        str | None, typer.Option(help="More methods that requests may name, with commas between.")
    ] = None,
    levels: Annotated[int, typer.Option(min=0, help="Steps of weights: fewer compositions differ; 0: exact.")] = 4,
    max_lora_rank: Annotated[
        int, typer.Option(min=1, help="What vLLM was started with; a prompt's adapters have so many ROCs at most.")
    ] = 64,
    compositions: Annotated[
        int | None,
        typer.Option(min=1, help="Different ones at a backend at once; default: its --max-loras, as far as it says."),
    ] = None,
    adapter_bytes: Bytes = "10GB",
    running: Annotated[int, typer.Option(min=1, help="Requests at each backend at once.")] = 256,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused with 429.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a whole answer, waiting counted.")] = 600,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for what runs after SIGTERM.")] = 30,
    connections: Annotated[
        int, typer.Option(min=1, help="At once; fewer where files that may be open are few.")
    ] = 1000,
) -> None:
    """Route model="auto" and pass it on to stock vLLM as a request for an adapter: OpenAI's API at /v1."""
    if context.invoked_subcommand is not None:
        return
    try:
        from hilora.gateway.run import LIMITS
        from hilora.gateway.run import Settings as Told
        from hilora.gateway.run import serve as run
    except ModuleNotFoundError as error:
        raise missing(error) from error
    from dataclasses import replace

    if adapters is None:
        raise InputError(WITHOUT)
    _, settings = choose_method(method, option)
    opened = open_pool(pool)
    told = Told(
        backends=tuple(backend or ()),
        adapters=adapters,
        adapters_at=adapters_at,
        resolves=resolve,
        method=method,
        options=settings,
        methods=split_names(methods or ""),
        levels=levels or None,
        ranks=max_lora_rank,
        compositions=compositions,
        adapter_bytes=adapter_bytes,
        host=host,
        port=port,
        limits=replace(
            LIMITS, running=running, waiting=waiting, deadline=deadline, drain=drain, connections=connections
        ),
    )
    quiet_transformers()
    run(opened, told, console.print)


@app.command()
def export(
    *,
    pool: PoolName = None,
    adapters: Adapters = None,
    adapters_at: At = "",
    adapter_bytes: Bytes = "10GB",
    base: Annotated[str | None, typer.Option(help="What vLLM is told as --model; default: the pool's base.")] = None,
) -> None:
    """Write every adapter into the folder, and print vLLM's options, where it may load none while it runs."""
    try:
        from hilora.gateway.folder import AdapterFolder
    except ModuleNotFoundError as error:
        raise missing(error) from error
    from hilora.gateway.listed import options_of, write_all
    from hilora.pool.memory import parse_bytes

    if adapters is None:
        raise InputError(WITHOUT)
    opened = open_pool(pool)
    folder = AdapterFolder(adapters, parse_bytes(adapter_bytes), 0.0)
    with status(f"Writing {len(opened)} adapters"):
        names = list(write_all(opened, folder, base or opened.base.name))
    if not names:
        raise InputError(f"{opened.path} has no adapter that prompts may be routed to. Add one: hilora pool add.")
    typer.echo(" ".join(options_of(opened, names, adapters_at.rstrip("/") or str(folder.path))))


def missing(error: ModuleNotFoundError) -> InputError:
    """What is told where a package is not installed."""
    return InputError(f"A gateway needs {error.name}. Install it: pip install 'hilora[gateway]'")
