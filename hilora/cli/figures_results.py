"""hilora figures selection, retrieval: what results files of hilora evaluate say, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.options import FiguresOut, split_names
from hilora.cli.show import show_files
from hilora.errors import InputError
from hilora.jsonl import write_entries
from hilora.methods import DEFAULT_METHOD


def selection(
    *,
    rows: Annotated[list[Path], typer.Option(help="Results of hilora evaluate tasks (may be repeated).")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="A method of the results, as labelled there.")
    ] = DEFAULT_METHOD,
    setting: Annotated[str | None, typer.Option(help="Only this setting.")] = None,
    out: FiguresOut = Path("figures"),
) -> None:
    """How many adapters and ROCs a method selects, for seen and for unseen prompts."""
    from hilora.analyse import figures, look
    from hilora.analyse.selection import count_selected, read_results

    look.check_drawing(out)
    found = count_selected(read_results(rows), method, setting)
    name = "selection_" + "".join(c if c.isalnum() or c in "-." else "_" for c in method)
    files = [write_entries({"method": method, "groups": found}, out / f"{name}.json")]
    files += look.save(figures.selections(found, method), out / name)
    show_files(files)


def retrieval(
    *,
    results: Annotated[list[Path], typer.Option("--json", help="Of hilora evaluate routing (may be repeated).")],
    samples: Annotated[
        str | None, typer.Option(help="Draw against these numbers of samples per adapter, one a file, e.g. 5,10,20")
    ] = None,
    k: Annotated[int | None, typer.Option(help="With --samples: the top k to draw; default: 1.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="Keep to this one.")] = None,
    out: FiguresOut = Path("figures"),
) -> None:
    """How often the right adapter is among the best k, against k or against the number of samples."""
    from hilora.analyse import figures, look
    from hilora.analyse.retrieval import against_k, against_samples, read_routing

    look.check_drawing(out)
    if k is not None and samples is None:
        raise InputError("--k is the point of curves over samples: give --samples, too, or leave --k away.")
    read = {path: read_routing(path) for path in results}
    if samples is None:
        drawn = figures.retrieval(**against_k(read, method))
    else:
        drawn = figures.retrieval(**against_samples(read, split_names(samples), 1 if k is None else k, method))
    show_files(look.save(drawn, out / ("retrieval" if samples is None else "retrieval_samples")))
