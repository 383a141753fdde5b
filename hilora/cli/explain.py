"""hilora explain: one prompt's route as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.opened import choose_method, open_pool
from hilora.cli.options import (
    Allow,
    Base,
    Deny,
    Dtype,
    Method,
    PoolName,
    Quantize,
    Settings,
    quiet_transformers,
)
from hilora.cli.show import show_files, status
from hilora.errors import InputError
from hilora.methods import DEFAULT_METHOD


def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    *,
    pool: PoolName = None,
    method: Method = DEFAULT_METHOD,
    option: Settings = None,
    seed: Annotated[int, typer.Option(help="Seed of the allocation.")] = 0,
    allow: Allow = None,
    deny: Deny = None,
    generate: Annotated[bool, typer.Option("--generate", help="Answer it, too, and show what tokens used.")] = False,
    base: Base = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="At most this many tokens of the answer; default: 64.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("explained.html"),
) -> None:
    """Explain one prompt's route on a page: who was chosen, who was not, and why."""
    from hilora.analyse.explain import explain as explain_route
    from hilora.analyse.explain import explain_answer
    from hilora.analyse.page import render
    from hilora.base.outputs import check_file
    from hilora.base.prompts import query_text
    from hilora.engine.generate import HiLoRA
    from hilora.planner import Planner

    answering = {"--base": base, "--dtype": dtype, "--quantize": quantize, "--max-new-tokens": max_new_tokens}
    if not generate and (idle := [name for name, value in answering.items() if value is not None]):
        raise InputError(f"{idle[0]} is about the answer, and none is asked for. Add --generate, or leave it away.")
    check_file(out)
    text = query_text(prompt)
    alone = "" if generate else "hilora explain without --generate"
    built, settings = choose_method(method, option, without_base=alone)
    opened = open_pool(pool)
    quiet_transformers()
    with status("Routing, and answering" if generate else "Routing"):
        if generate:
            router = HiLoRA.from_pretrained(
                base, opened, method, dtype=dtype, quantization_config=quantize, **settings
            )
            tokens = max_new_tokens or 64
            found = explain_answer(router, text, max_new_tokens=tokens, seed=seed, allow=allow, deny=deny)
        else:
            found = explain_route(Planner(opened, built), text, seed=seed, allow=allow, deny=deny)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(found), encoding="utf-8", errors="replace")
    show_files([out])
