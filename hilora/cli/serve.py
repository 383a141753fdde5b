"""hilora serve: a pool behind HTTP, for any OpenAI client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from hilora.cli import serve_tokens
from hilora.cli.opened import choose_method, open_pool
from hilora.cli.options import Base, Dtype, Method, PoolName, Quantize, Settings, quiet_transformers, split_names
from hilora.cli.show import console, progress, status
from hilora.cli.usage import Commands
from hilora.errors import InputError
from hilora.methods import DEFAULT_METHOD

app = typer.Typer(cls=Commands, help="Serve a pool over HTTP.", invoke_without_command=True)
app.add_typer(serve_tokens.app, name="token")


@app.callback()
@no_type_check  # typer hands over a context of another class than it asks for
def serve(
    context: typer.Context,
    *,
    pool: PoolName = None,
    base: Base = None,
    method: Method = DEFAULT_METHOD,
    option: Settings = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods that requests may name, with commas between; default: that can grow.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    uploads: Annotated[bool, typer.Option(help="Whether adapters may be uploaded.")] = True,
    running: Annotated[int, typer.Option(min=1, help="Answers that share the model's steps.")] = 32,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused with 429.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a whole answer, waiting counted.")] = 600,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for what runs after SIGTERM.")] = 30,
    connections: Annotated[
        int, typer.Option(min=1, help="At once; fewer where files that may be open are few.")
    ] = 1000,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request's headers; slower clients are ended.")
    ] = 30,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, where a request does not say.")] = 1024,
    dtype: Dtype = None,
    quantize: Quantize = None,
    adapter_memory: Annotated[str, typer.Option(help="For adapters in memory, e.g. 2GB.")] = "512MB",
    kv_memory: Annotated[
        str | None, typer.Option(help="For keys and values of all requests, e.g. 2GB; default: half of what is free.")
    ] = None,
    compile_steps: Annotated[
        str,
        typer.Option("--compile", help="off, or step: the steps of --method are compiled before the first request."),
    ] = "off",
    compile_rows: Annotated[
        str | None, typer.Option(help="Answers that compiled steps are made for, with commas; default: 1,8,32.")
    ] = None,
    compile_tokens: Annotated[
        str | None, typer.Option(help="Tokens of a prompt and its answer that they are for; default: 256,1024.")
    ] = None,
    compile_slots: Annotated[
        int | None, typer.Option(min=1, help="Adapters of each shape that they hold at once; default: 8.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")] = False,
) -> None:
    """Serve a pool: OpenAI's API at http://HOST:PORT/v1, its description at /docs, a page at /ui."""
    if context.invoked_subcommand is not None:
        return
    try:
        from hilora.serve.listening import share_malloc
        from hilora.serve.run import Settings as Served
        from hilora.serve.run import serve as run
    except ModuleNotFoundError as error:
        raise InputError(f"Serving needs {error.name}. Install it: pip install 'hilora[serve]'") from error
    from hilora.engine.generate import HiLoRA
    from hilora.serve.limits import Limits

    built, settings = choose_method(method, option)
    compiled = compiled_of(compile_steps, compile_rows, compile_tokens, compile_slots)
    opened = open_pool(pool)
    limits = Limits(
        running=running,
        waiting=waiting,
        deadline=deadline,
        drain=drain,
        new_tokens=new_tokens,
        connections=connections,
        patience=patience,
    )
    asked = Served(
        host=host,
        port=port,
        uploads=uploads,
        methods=None if methods is None else split_names(methods),
        limits=limits,
        log_prompts=log_prompts,
    )
    state = asked.check(Path(opened.path), built)
    quiet_transformers()
    share_malloc()
    with status(f"Loading {base or opened.base.name} and {len(opened)} adapters"):
        loading: dict[str, Any] = {"dtype": dtype, "quantization_config": quantize}
        router = HiLoRA.from_pretrained(
            base,
            opened,
            method,
            adapter_memory=adapter_memory,
            kv_memory=kv_memory,
            compile=compiled,
            **loading,
            **settings,
        )
        router.planner.embedder  # noqa: B018  # loaded now, not with the first request
        router.batching  # noqa: B018
    if compiled != "off":
        with progress(router.lanes.fixed.sizes, "steps compiled") as advance:
            router.compile(lambda done, of: advance(done))
    run(router, asked, state, console.print)


def compiled_of(name: str, rows: str | None, tokens: str | None, slots: int | None) -> Any:
    """What `HiLoRA` is told to compile.

    Raises:
        InputError: numbers that are none, or where nothing is compiled.
    """
    from hilora.engine.compiled.options import Compile, options_of

    given = {"rows": rows, "tokens": tokens, "slots": slots}
    asked: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    if options_of(name) is None:
        if asked:
            raise InputError(f"--compile-{next(iter(asked))} is for --compile step. Add that, or leave it out.")
        return "off"
    for option in ("rows", "tokens"):
        if option in asked:
            try:
                asked[option] = tuple(int(each) for each in asked[option].split(","))
            except ValueError as error:
                message = f"--compile-{option} are numbers with commas between, such as 1,8; got {asked[option]!r}."
                raise InputError(message) from error
    return Compile(**asked)
