"""hilora figures activation, weights: what a method uses of its adapters, token by token and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.opened import choose_method
from hilora.cli.options import (
    Allow,
    Base,
    Deny,
    Dtype,
    FiguresOut,
    MaxNew,
    Method,
    PoolName,
    Settings,
    quiet_transformers,
)
from hilora.cli.show import progress, show_files, status
from hilora.jsonl import write_entries
from hilora.methods import DEFAULT_METHOD


def activation(
    *,
    prompt: Annotated[str, typer.Option(help="The prompt to answer.")],
    pool: PoolName = None,
    method: Method = DEFAULT_METHOD,
    option: Settings = None,
    site: Annotated[list[str] | None, typer.Option(help="Sum over these sites only, e.g. layers.3.v_proj")] = None,
    allow: Allow = None,
    deny: Deny = None,
    base: Base = None,
    dtype: Dtype = None,
    max_new_tokens: MaxNew = 32,
    seed: int = 0,
    out: FiguresOut = Path("figures"),
) -> None:
    """Answer a prompt, and draw which ROCs each token used."""
    from hilora.analyse import activation_maps, look
    from hilora.analyse.activation import record
    from hilora.analyse.rocs import choose_sites
    from hilora.engine.generate import HiLoRA
    from hilora.evaluate.setup import setup

    look.check_drawing(out)
    _, settings = choose_method(method, option)
    quiet_transformers()
    with status("Loading the base model, and answering"):
        router = HiLoRA.from_pretrained(base, pool, method, dtype=dtype, **settings)
        found = record(router, prompt, seed=seed, max_new_tokens=max_new_tokens, allow=allow, deny=deny)
    chosen = choose_sites(list(found.used), site) if site else list(found.used)
    header = setup("hilora figures activation", method=method, seed=seed, sites=chosen)
    files = [write_entries({"setup": header, **found.numbers(chosen)}, out / "activation.json")]
    files += look.save(activation_maps.by_token(found, chosen, method), out / "activation")
    files += look.save(activation_maps.by_site(found, method), out / "activation_layers")
    show_files(files)


def weights(
    *,
    test: Annotated[Path, typer.Option(help='Prompts: JSON Lines with "task" and "inputs"; a panel for each task.')],
    pool: PoolName = None,
    method: Method = "ramole",
    option: Settings = None,
    site: Annotated[list[str] | None, typer.Option(help="Show these sites only, e.g. v_proj")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Show these tasks only (may be repeated).")] = None,
    per_task: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each task.")] = None,
    base: Base = None,
    dtype: Dtype = None,
    seed: int = 0,
    out: FiguresOut = Path("figures"),
) -> None:
    """How a method that weighs adapters token by token does so, layer by layer."""
    from hilora.analyse import heatmaps, look
    from hilora.analyse.rocs import choose_sites
    from hilora.analyse.similarity import read_tasks
    from hilora.analyse.weights import weights_by_site
    from hilora.engine.generate import HiLoRA
    from hilora.errors import UnknownNameError
    from hilora.evaluate.setup import setup

    look.check_drawing(out)
    _, settings = choose_method(method, option)
    texts, _ = read_tasks(test)
    if unknown := [name for name in task or () if name not in texts]:
        raise UnknownNameError("task", unknown[0], texts)
    texts = {name: texts[name][:per_task] for name in task or texts}
    quiet_transformers()
    with status("Loading the base model"):
        router = HiLoRA.from_pretrained(base, pool, method, dtype=dtype, **settings)
    tasks, done, shown = {}, 0, []
    with progress(sum(map(len, texts.values())), "prompts") as advance:
        for name, prompts in texts.items():
            sites, names, found = weights_by_site(router, prompts, seed=seed)
            done += len(prompts)
            advance(done)
            shown = choose_sites(sites, site) if site else sites
            kept = found[[sites.index(each) for each in shown]]
            tasks[name] = {
                "adapters": names,
                "prompts": len(prompts),
                "weights": kept.double().round(decimals=4).tolist(),
            }
    header = setup("hilora figures weights", method=method, seed=seed)
    numbers = {"setup": header, "sites": shown, "tasks": tasks}
    drawn = heatmaps.weights(numbers, method)
    show_files([write_entries(numbers, out / "weights.json"), *look.save(drawn, out / "weights")])
