"""hilora figures: pictures of pools, answers and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hilora.cli.options import (
    Allow,
    Base,
    Deny,
    Dtype,
    MaxNew,
    Method,
    PoolName,
    Settings,
    parse_settings,
    quiet_transformers,
    split_names,
)
from hilora.cli.show import console, progress, status
from hilora.errors import InputError
from hilora.jsonl import write_entries

app = typer.Typer(help="Draw pools, answers and results; every figure as PNG and SVG, its numbers as JSON.")

Out = Annotated[Path, typer.Option("--out", help="Folder for the figures and their numbers.")]


@app.callback()
def group() -> None:
    """Draw pools, answers and results; every figure as PNG and SVG, its numbers as JSON."""


@app.command()
def rocs(
    *,
    pool: PoolName = "flan-mini",
    site: Annotated[list[str] | None, typer.Option(help="A site to measure and draw (may be repeated).")] = None,
    sites: Annotated[str | None, typer.Option(help="Measure all sites that end so, with commas, e.g. q_proj")] = None,
    draw: Annotated[int, typer.Option(min=0, help="With --sites: draw so many of them, evenly spread.")] = 3,
    adapter: Annotated[list[str] | None, typer.Option(help="Keep to this adapter (may be repeated).")] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Labellings that scores are compared with.")] = 100,
    seed: int = 0,
    out: Out = Path("figures"),
) -> None:
    """ROCs of all adapters in the plane, and the paper's three observations about them in numbers."""
    from hilora.analyse import figures, heatmaps
    from hilora.analyse.observations import observe
    from hilora.analyse.rocs import FORMS, PARTS, canonical_at, choose_sites, stack
    from hilora.evaluate.setup import setup
    from hilora.pool import Pool
    from hilora.pool.source import find_pool

    figures.need_matplotlib()
    if not site and not sites:
        raise InputError("Which sites? Give --site model.layers.3.self_attn.q_proj, or --sites q_proj,v_proj.")
    opened = Pool.open(find_pool(pool))
    names = adapter or opened.names
    factors = {name: opened.factors(opened.entries[opened.index(name)].hash) for name in names}
    known = sorted({own for of in factors.values() for own in of})
    many, single = choose_sites(known, split_names(sites or "")), choose_sites(known, site or [])
    measured = list(dict.fromkeys([*many, *single]))
    with progress(len(measured), "sites") as advance:
        found = observe(factors, measured, permutations=permutations, seed=seed, on_site=advance)
    header = setup("hilora figures rocs", pool_version=opened.version, permutations=permutations, seed=seed)
    files = [write_entries({"setup": header, **found}, out / "rocs.json")]
    files += figures.save(figures.roc_scores(found), out / "rocs_scores")
    files += figures.save(heatmaps.overlap(found), out / "rocs_overlap")
    for name in dict.fromkeys([*single, *_spread(many, draw)]):
        having = {own: of for own, of in factors.items() if name in of}
        forms = dict(zip(FORMS, ([*having.values()], canonical_at([*having.values()], name)), strict=True))
        kinds = {(form, part): stack(forms[form], name, part) for form in FORMS for part in PARTS}
        files += figures.save(figures.roc_planes(kinds, list(having), name), out / f"rocs_{name}")
    _show_observations(found)
    _say(files)


@app.command()
def activation(
    *,
    prompt: Annotated[str, typer.Option(help="The prompt to answer.")],
    pool: PoolName = "flan-mini",
    method: Method = "hilora",
    option: Settings = None,
    site: Annotated[list[str] | None, typer.Option(help="Sum over these sites only, e.g. layers.3.v_proj")] = None,
    allow: Allow = None,
    deny: Deny = None,
    base: Base = None,
    dtype: Dtype = None,
    max_new_tokens: MaxNew = 32,
    seed: int = 0,
    out: Out = Path("figures"),
) -> None:
    """Answer a prompt, and draw which ROCs each token used."""
    from hilora.analyse import activation_maps, figures
    from hilora.analyse.activation import record
    from hilora.analyse.rocs import choose_sites
    from hilora.engine.generate import HiLoRA
    from hilora.evaluate.setup import setup

    figures.need_matplotlib()
    settings = _settings_of(method, option)
    quiet_transformers()
    with status("Loading the base model, and answering"):
        router = HiLoRA.from_pretrained(base, pool, method, dtype=dtype, **settings)
        found = record(router, prompt, seed=seed, max_new_tokens=max_new_tokens, allow=allow, deny=deny)
    chosen = choose_sites(list(found.used), site) if site else list(found.used)
    header = setup("hilora figures activation", method=method, seed=seed, sites=chosen)
    files = [write_entries({"setup": header, **found.numbers(chosen)}, out / "activation.json")]
    files += figures.save(activation_maps.by_token(found, chosen, method), out / "activation")
    files += figures.save(activation_maps.by_site(found, method), out / "activation_layers")
    _say(files)


@app.command()
def weights(
    *,
    test: Annotated[Path, typer.Option(help='Prompts: JSON Lines with "task" and "inputs"; a panel for each task.')],
    pool: PoolName = "flan-mini",
    method: Method = "ramole",
    option: Settings = None,
    site: Annotated[list[str] | None, typer.Option(help="Show these sites only, e.g. v_proj")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Show these tasks only (may be repeated).")] = None,
    per_task: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each task.")] = None,
    base: Base = None,
    dtype: Dtype = None,
    seed: int = 0,
    out: Out = Path("figures"),
) -> None:
    """How a method that weighs adapters token by token does so, layer by layer."""
    from hilora.analyse import figures, heatmaps
    from hilora.analyse.rocs import choose_sites
    from hilora.analyse.similarity import read_tasks
    from hilora.analyse.weights import weights_by_site
    from hilora.engine.generate import HiLoRA
    from hilora.errors import UnknownNameError
    from hilora.evaluate.setup import setup

    figures.need_matplotlib()
    settings = _settings_of(method, option)
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
    _say([write_entries(numbers, out / "weights.json"), *figures.save(heatmaps.weights(numbers), out / "weights")])


@app.command()
def selection(
    *,
    rows: Annotated[list[Path], typer.Option(help="Results of hilora evaluate tasks (may be repeated).")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="A method of the results, as labelled there.")
    ] = "hilora",
    setting: Annotated[str | None, typer.Option(help="Only this setting.")] = None,
    out: Out = Path("figures"),
) -> None:
    """How many adapters and ROCs a method selects, for seen and for unseen prompts."""
    from hilora.analyse import figures
    from hilora.analyse.selection import count_selected, read_results

    figures.need_matplotlib()
    found = count_selected(read_results(rows), method, setting)
    name = "selection_" + "".join(c if c.isalnum() or c in "-." else "_" for c in method)
    files = [write_entries({"method": method, "groups": found}, out / f"{name}.json")]
    files += figures.save(figures.selections(found, method), out / name)
    _say(files)


@app.command()
def similarity(
    *,
    pool: PoolName = "flan-mini",
    test: Annotated[
        Path | None,
        typer.Option(help='Prompts: JSON Lines with "task", "inputs" and "cluster"; default: the samples.'),
    ] = None,
    out: Out = Path("figures"),
) -> None:
    """How similar each task's prompts are to each adapter, as heatmaps."""
    from hilora.analyse import figures, heatmaps
    from hilora.analyse.similarity import SCORES, against_prompts, against_samples, read_tasks
    from hilora.base.embed import Embedder
    from hilora.evaluate.routing import look_at
    from hilora.evaluate.setup import setup
    from hilora.planner import describe_embedder
    from hilora.pool import Pool
    from hilora.pool.source import find_pool

    figures.need_matplotlib()
    opened = Pool.open(find_pool(pool))
    if test is None:
        found = against_samples(opened.names, opened.samples(), opened.ridge)
    else:
        texts, clusters = read_tasks(test)
        quiet_transformers()
        with status("Embedding"):
            embedder = Embedder(opened.embedder.name, instruction=opened.embedder.instruction)
            opened.check_embedder(describe_embedder(embedder))
            asked = {task: look_at(own, embedder, False) for task, own in texts.items()}
        found = against_prompts(asked, clusters, opened.names, opened.samples(), opened.ridge)
    header = setup("hilora figures similarity", ridge=opened.ridge)
    files = [write_entries({"setup": header, **found}, out / "similarity.json")]
    for name in SCORES:
        files += figures.save(heatmaps.similarity(found, name), out / f"similarity_{name}")
    _say(files)


@app.command()
def retrieval(
    *,
    results: Annotated[list[Path], typer.Option("--json", help="Of hilora evaluate routing (may be repeated).")],
    samples: Annotated[
        str | None, typer.Option(help="Draw against these numbers of samples per adapter, one a file, e.g. 5,10,20")
    ] = None,
    k: Annotated[int, typer.Option(help="With --samples: the top k to draw.")] = 1,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="Keep to this one.")] = None,
    out: Out = Path("figures"),
) -> None:
    """How often the right adapter is among the best k, against k or against the number of samples."""
    from hilora.analyse import figures
    from hilora.analyse.retrieval import against_k, against_samples, read_routing

    figures.need_matplotlib()
    read = {path: read_routing(path) for path in results}
    if samples is None:
        drawn = figures.retrieval(**against_k(read, method))
    else:
        drawn = figures.retrieval(**against_samples(read, split_names(samples), k, method))
    _say(figures.save(drawn, out / ("retrieval" if samples is None else "retrieval_samples")))


def _settings_of(method: str, option: Sequence[str] | None) -> dict[str, Any]:
    """A method's options; what is none of them is refused before anything is loaded."""
    from hilora.methods.table import get_method

    settings = parse_settings(option)
    get_method(method, **settings)
    return settings


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly spread."""
    count = min(count, len(names))
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def _say(files: Sequence[Path]) -> None:
    for file in files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)


def _show_observations(found: dict[str, Any]) -> None:
    """The numbers that matter most, in percent or as they are."""
    from hilora.analyse.observations import table
    from hilora.evaluate.tables import rich_table

    console.print(rich_table(*table(found)))
