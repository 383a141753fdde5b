"""hilora figures rocs, similarity: a pool's adapters, by their weights and by the prompts that are like them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hilora.cli.opened import open_pool
from hilora.cli.options import FiguresOut, PoolName, quiet_transformers, split_names
from hilora.cli.show import console, progress, show_files, status
from hilora.errors import InputError
from hilora.jsonl import write_entries


def rocs(
    *,
    pool: PoolName = None,
    site: Annotated[list[str] | None, typer.Option(help="A site to measure and draw (may be repeated).")] = None,
    sites: Annotated[str | None, typer.Option(help="Measure all sites that end so, with commas, e.g. q_proj")] = None,
    draw: Annotated[
        int | None, typer.Option(min=0, help="With --sites: draw so many of them, evenly spread; default: 3.")
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Keep to this adapter (may be repeated).")] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Labellings that scores are compared with.")] = 100,
    seed: int = 0,
    out: FiguresOut = Path("figures"),
) -> None:
    """ROCs of all adapters in the plane, and the paper's three observations about them in numbers."""
    from hilora.analyse import figures, heatmaps, look
    from hilora.analyse.observations import observe
    from hilora.analyse.rocs import FORMS, PARTS, canonical_at, choose_sites, stack
    from hilora.evaluate.setup import setup

    look.check_drawing(out)
    if not site and not sites:
        raise InputError("Which sites? Give --site model.layers.3.self_attn.q_proj, or --sites q_proj,v_proj.")
    if draw is not None and not sites:
        raise InputError("--draw says how many of --sites are drawn; what --site names is. Leave --draw away.")
    opened = open_pool(pool)
    names = adapter or opened.names
    factors = {name: opened.factors(opened.entries[opened.index(name)].hash) for name in names}
    known = sorted({own for of in factors.values() for own in of})
    many, single = choose_sites(known, split_names(sites or "")), choose_sites(known, site or [])
    measured = list(dict.fromkeys([*many, *single]))
    with progress(len(measured), "sites") as advance:
        found = observe(factors, measured, permutations=permutations, seed=seed, on_site=advance)
    header = setup("hilora figures rocs", pool_version=opened.version, permutations=permutations, seed=seed)
    files = [write_entries({"setup": header, **found}, out / "rocs.json")]
    files += look.save(figures.roc_scores(found), out / "rocs_scores")
    files += look.save(heatmaps.overlap(found), out / "rocs_overlap")
    for name in dict.fromkeys([*single, *_spread(many, 3 if draw is None else draw)]):
        having = {own: of for own, of in factors.items() if name in of}
        forms = dict(zip(FORMS, ([*having.values()], canonical_at([*having.values()], name)), strict=True))
        kinds = {(form, part): stack(forms[form], name, part) for form in FORMS for part in PARTS}
        files += look.save(figures.roc_planes(kinds, list(having), name), out / f"rocs_{name}")
    _show_observations(found)
    show_files(files)


def similarity(
    *,
    pool: PoolName = None,
    test: Annotated[
        Path | None,
        typer.Option(help='Prompts: JSON Lines with "task", "inputs" and "cluster"; default: the samples.'),
    ] = None,
    out: FiguresOut = Path("figures"),
) -> None:
    """How similar each task's prompts are to each adapter, as heatmaps."""
    from hilora.analyse import heatmaps, look
    from hilora.analyse.similarity import SCORES, against_prompts, against_samples, read_tasks
    from hilora.evaluate.routing import look_at
    from hilora.evaluate.setup import setup

    look.check_drawing(out)
    opened = open_pool(pool)
    if test is None:
        found = against_samples(opened.names, opened.samples(), opened.ridge)
    else:
        texts, clusters = read_tasks(test)
        quiet_transformers()
        with status("Embedding"):
            embedder = opened.embedder.load(opened.path)
            asked = {task: look_at(own, embedder, False) for task, own in texts.items()}
        found = against_prompts(asked, clusters, opened.names, opened.samples(), opened.ridge)
    header = setup("hilora figures similarity", ridge=opened.ridge)
    files = [write_entries({"setup": header, **found}, out / "similarity.json")]
    for name in SCORES:
        files += look.save(heatmaps.similarity(found, name), out / f"similarity_{name}")
    show_files(files)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly spread."""
    count = min(count, len(names))
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def _show_observations(found: dict[str, Any]) -> None:
    """The numbers that matter most, in percent or as they are."""
    from hilora.analyse.observations import table
    from hilora.evaluate.tables import rich_table

    console.print(rich_table(*table(found)))
