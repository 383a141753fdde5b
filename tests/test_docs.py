"""What documents say is what the program does."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hilora
from hilora import errors
from hilora.cli.app import app
from hilora.evaluate.routing import SCORERS
from hilora.jsonl import read_lines
from hilora.methods.table import METHODS
from hilora.types import Choice

ROOT = Path(__file__).parent.parent


def commands() -> set[str]:
    """Every command of the program, as people type it."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"hilora {name} {sub}" for sub in inner} or {f"hilora {name}"}
    return found


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    known = commands()
    assert [command for command in sorted(known) if f"`{command}" not in text] == []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for line in re.findall(
            r"hilora ((?:pool|train|evaluate) [a-z-]+|route|generate|methods|demo)\b", page.read_text()
        ):
            assert f"hilora {line}" in known, page


def test_every_method_is_in_its_modules_table() -> None:
    text = (ROOT / "hilora" / "methods" / "table.py").read_text().split('"""')[1]
    assert all(f"\n{name} " in text for name in METHODS)


def test_every_scorer_is_named_in_the_help() -> None:
    group = typer.main.get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    (option,) = [p for p in group.commands["routing"].params if p.name == "methods"]
    assert all(name in option.help for name in SCORERS)


def test_the_public_names_are_these() -> None:
    assert sorted(hilora.__all__) == [
        "Compile",
        "Completion",
        "Embedder",
        "HiLoRA",
        "HiloraError",
        "METHODS",
        "Planner",
        "Pool",
        "get_method",
    ]
    assert all(getattr(hilora, name) is not None for name in hilora.__all__)
    assert [name for name in dir(hilora) if not name.startswith("_")] == sorted(hilora.__all__)
    assert "__version__" in dir(hilora)


def test_the_oldest_transformers_that_is_promised_is_the_one_that_make_tests() -> None:
    (promised,) = re.findall(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"\nVERSION ?= {promised}\n" in (ROOT / "Makefile").read_text()
    assert f"transformers {promised} or newer" in (ROOT / "docs" / "getting-started.md").read_text()


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if ":" in path:
            continue
        found = page if not path else page.parent / path
        assert found.exists(), f"{page.name}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_every_page_is_in_the_index() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in text] == ["index.md"]


def test_every_public_name_and_error_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for name in hilora.__all__:
        assert re.search(rf"auto\w+:: hilora\.(\w+\.)*{name}\n", text), name
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds == set(re.findall(r"autoexception:: hilora\.(?:errors\.)?(\w+)", text))


def test_what_the_reference_names_exists() -> None:
    for kind, name in re.findall(r"\.\. auto(\w+):: (\S+)", (ROOT / "docs" / "api.md").read_text()):
        parent, _, own = name.rpartition(".")
        assert import_module(name) if kind == "module" else hasattr(import_module(parent), own), name


def test_the_sites_index_lists_what_its_page_links(scripts: Any) -> None:
    conf = scripts.load("docs/conf.py")
    page = "| [a](a.md) | |\n| [b](b.md#c) and [a](a.md), [x](x.py) |\n[d](d.md)\n"
    assert conf.with_toctree(page) == page + "\n```{toctree}\n:hidden:\n\na.md\nd.md\n```\n"


def test_links_to_folders_lead_to_their_readme(scripts: Any, tmp_path: Path) -> None:
    conf = scripts.load("docs/conf.py")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("")
    (tmp_path / "b").mkdir()
    page = "[a](a), ![a](a/), [b](b), [c](a/README.md), (a)"
    assert conf.with_readmes(page, tmp_path) == "[a](a/README.md), ![a](a/README.md), [b](b), [c](a/README.md), (a)"


def test_what_stands_beside_fields_is_told(scripts: Any) -> None:
    conf = scripts.load("docs/conf.py")
    lines = ["One answer's part:", "", "    code", ""]
    conf.read_docstring(None, "class", "", Choice, None, lines)
    assert lines[:3] == ["One answer's part::", "", "    code"]
    assert "    rank: the ROCs that it has" in lines
    assert "Attributes:" in lines
    told = ["Args:", "    a: b"]
    conf.read_docstring(None, "function", "", conf.setup, None, told)
    assert told == ["Args:", "    a: b"]


def test_the_page_about_quantised_bases_shows_the_rows_beside_the_benchmark(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = scripts.load("benchmarks/quantised.py")
    page = (ROOT / "docs" / "gpus.md").read_text()
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "quantised.jsonl").read_text().splitlines()]
    assert script.on_page(page, rows) == page
    assert script.on_page(page, rows[:1] + [row | {"same": 0.5} for row in rows[1:]]) != page


def test_what_the_readme_quotes_is_what_was_measured(scripts: Any) -> None:
    script, text = scripts.load("reproduce/quoted.py"), (ROOT / "README.md").read_text()
    assert len(script.QUOTE.findall(text)) == text.count("<!-- from ") >= 1
    assert script.quoted(text, ROOT) == text


def rows_under(scripts: Any, page: str, heading: str) -> dict[str, dict[str, str]]:
    """First cell -> heading -> cell of the table there; of columns that are headed alike, the first."""
    table = scripts.load("reproduce/quoted.py").table_under((ROOT / page).read_text(), heading)
    names, _, *rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0]: dict(reversed(list(zip(names, row, strict=True)))) for row in rows}


def test_the_numbers_in_the_readmes_words_are_those_of_the_tables(scripts: Any) -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    page, cross = "reproduce/hilora/results.md", "Table 2: cross cluster"

    def verdicts(title: str, verdict: str) -> tuple[list[str], int]:
        of = rows_under(scripts, page, f"{title}: hilora-plus by cluster")
        return [cluster for cluster, row in of.items() if row[""] == verdict], len(of)

    behind, count = verdicts(cross, "behind")
    assert f"behind the best of the others in {len(behind)} of {count} ({', '.join(behind)}) and" in text
    ahead, count = verdicts("Within cluster", "ahead")
    assert f"ahead in {len(ahead)} of {count} ({', '.join(ahead)}) and behind in none" in text
    everywhere = "Every adapter in the pool"
    assert [verdicts(*of)[0] for of in ((cross, "ahead"), ("Within cluster", "behind"))] == [[], []]
    ahead, count = verdicts(everywhere, "ahead")
    assert f"with all there, ahead in {len(ahead)} of {count} ({', '.join(ahead)}) and behind in none" in text
    assert not verdicts(everywhere, "behind")[0]
    table = rows_under(scripts, page, cross)
    assert f"({table['selection']['average']} and {table['constant']['average']})" in text
    less = rows_under(scripts, page, f"{everywhere}: against hilora-plus")["phatgoose"]["difference"]
    assert f"is {less.removeprefix('-')} points behind with the right one there" in text
    table = rows_under(scripts, page, "Within cluster")
    low_high = re.search(
        rf"\| selection \|.*\| {re.escape(table['selection']['difference'])} \| ([^|]+) \|", (ROOT / page).read_text()
    )
    assert low_high is not None
    assert f"(`selection` less `hilora`: {table['selection']['difference']}, {low_high[1]})" in text
    less = rows_under(scripts, page, f"{cross}: against hilora-plus")["hilora"]["difference"]
    assert f"{less.removeprefix('-')} points behind `hilora-plus` without a related one" in text
    gap = rows_under(scripts, page, "Within cluster: tasks with a useful adapter")["hilora-plus"]["gap closed"]
    assert f"get {100 * float(gap):.0f} % of what the right adapter adds" in text
    nli = rows_under(scripts, page, "Table 1, Fig. 1: NLI within cluster")
    scores = [nli[method]["average"] for method in ("hilora", "hilora-gs", "hilora-roc")]
    assert scores[1] == scores[2]
    assert f"`hilora` is at {scores[0]}, below its own variants at {scores[1]}" in text
    counts = [re.search(rf"## {title}\n\n(\d+) prompts", (ROOT / page).read_text()) for title in MAIN_TITLES]
    told = [f"{int(found[1]):,}" for found in counts if found]
    assert f"{told[0]}, {told[1]} and {told[2]} of them stand behind the three columns" in text
    scripts.load("reproduce/hilora/tables.py")  # which brings its neighbours with it
    note = scripts.load("reproduce/rounding.py").note("reproduce/hilora/batches.md")
    assert note.partition("of two runs")[2].partition(" differ")[0].replace(", ", " differ, ", 1) in text


def test_what_the_readme_says_of_two_bases_is_what_was_measured(scripts: Any) -> None:
    text, page = " ".join((ROOT / "README.md").read_text().split()), "reproduce/hilora/results.md"
    own, half = (
        rows_under(scripts, page, f"Two bases: {title}")
        for title in ("every adapter in the pool", "half of the tasks' adapters")
    )
    told = re.search(r"\n\| selection \| 2\. .*\n", (ROOT / page).read_text().partition("## Two bases: every")[2])
    assert told is not None
    one, two = re.findall(r"\| (\S+) \((\S+) to (\S+)\) a tie", told.group())
    assert f"(`selection` is a tie: {', '.join(one[:2])} to {one[2]}, and {', '.join(two[:2])} to {two[2]})" in text
    assert {of["hilora-plus"][base][:2] for of in (own, half) for base in ("smollm2-135m", "gemma-3-270m")} == {"1."}
    none = (ROOT / page).read_text().partition("## Two bases: no related")[2]
    assert "; on gemma-3-270m none." in none.partition("\n## ")[0]  # as the next sentence says
    assert "no method is significantly better than the base there" in text
    count = re.search(r"Two bases: every .*\n\nOn each base \d+ prompts of (\d+)", (ROOT / page).read_text())
    assert count is not None
    assert f"average over the {count[1]} tasks that both have adapters for" in text
    winners = re.findall(r"\n\| (\w+)-20 \| (arrow|spectr|lag|logo) \|.* (\d+)% \|", (ROOT / page).read_text())
    shares = {base: [int(share) for name, _, share in winners if name == base] for base in ("smollm2", "gemma")}
    spans = {base: f"in {min(of)} to {max(of)} %" for base, of in shares.items()}
    assert f"of 19 is used most {spans['smollm2']} of the prompts on SmolLM2" in text
    assert f"of 20 {spans['gemma']} on gemma-3-270m" in text


def test_what_the_readme_says_of_fresh_rows_is_what_was_measured(scripts: Any) -> None:
    text, page = " ".join((ROOT / "README.md").read_text().split()), "reproduce/hilora/results.md"
    title = "Rows that nothing had used"
    names = ("own adapter there", "tasks without an adapter")
    own, none = (rows_under(scripts, page, f"{title}: {name}") for name in names)
    less = rows_under(scripts, page, f"{title}: own adapter there: against hilora-plus")
    behind = [less[m]["difference"].removeprefix("-") for m in ("lorauter", "lorauter:k=5:temperature=0.05")]
    assert f"{100 * float(own['hilora-plus']['gap closed']):.0f} % of what the right adapter adds" in text
    assert f"is {behind[0]} points behind there as its paper has it, {behind[1]} with the options" in text
    assert f"sure; {less['selection']['difference'].removeprefix('-')} points behind then (fresh rows)" in text
    scores = [float(none[method]["average"]) for method in ("logo", "spectr", "lag")]
    assert f"({min(scores)} to {max(scores)}, `hilora-plus` {none['hilora-plus']['average']})" in text
    found = rows_under(scripts, "reproduce/hilora/decide.md", "Column by column")
    said = {name: row[""] for name, row in found.items()}
    first = {"own adapter there", "half of the adapters"}
    assert {name for name, verdict in said.items() if verdict == "ahead"} == first  # "so it is first where ..."
    assert {verdict for name, verdict in said.items() if name not in first} == {"a tie"}
    near = {"selection", "hilora", "mixture", "lorauter", "lorauter:k=5:temperature=0.05"}
    assert set(own) == {"base", "oracle", "hilora-plus"} | near
    table = rows_under(scripts, page, "Every adapter in the pool")
    for method in ("logo", "spectr", "lag"):
        assert float(table[method]["average"]) < float(table["hilora-plus"]["average"]) - 15


MAIN_TITLES = ("Every adapter in the pool", "Within cluster", "Table 2: cross cluster")


def test_what_the_readme_says_of_ramoles_prompts_and_of_time_is_what_was_measured(scripts: Any) -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    own = [rows_under(scripts, "reproduce/ramole/results.md", f"All tasks, {s}") for s in ("IID", "OOD")]
    pairs = [f"({of['hilora-plus']['average']} and {of['mixture']['average']})" for of in own]
    assert f"with all adapters {pairs[0]} and without the own {pairs[1]}" in text
    found = json.loads((ROOT / "reproduce/ramole/retrieval.json").read_text())
    experts = found["methods"]["experts"]
    assert f"{100 * experts['top1']:.1f} % first, {100 * experts['top3']:.1f} % among three" in text
    assert f"{experts['n']:,} prompts, without {found['setup']['left_out']} that are samples" in text
    runs: list[dict[Any, float]] = []
    for line in read_lines(ROOT / "benchmarks/selection.jsonl"):
        if "setup" in line:
            runs.append({})
        elif "p50_ms" in line:
            runs[-1].setdefault((line["what"], line.get("adapters")), line["p50_ms"])
    ms, slower = runs
    embedding, many, most = ("embedding one prompt of 20 tokens", None), 10_000, 1_000_000
    assert f"embedded ({ms[embedding]:.1f} ms for 20 tokens)" in text
    assert f"by `hilora` in {ms['own', many]:.0f} ms, by `hilora-plus` in {ms['hilora-plus', many]:.0f}" in text
    tied = f"in {ms['tied, exact', many]:.1f}, among a million, with an index, in {ms['tied, indexed', most]:.1f}"
    assert tied in text
    plus, near = slower["hilora-plus", many], slower["hilora-plus, an epoch's", many]
    assert f"({slower[embedding]:.1f} ms for the embedding) `hilora-plus` takes {plus:.1f} ms, and {near:.1f}" in text


def test_a_quoted_table_is_the_first_under_its_heading(scripts: Any, tmp_path: Path) -> None:
    script = scripts.load("reproduce/quoted.py")
    (tmp_path / "page.md").write_text("## One\n\nwords\n\n| a |\n| b |\n\n| c |\n\n## Two\n\n## Three\n\n| d |\n")
    text = "x\n<!-- from page.md: One -->\nold\n<!-- end -->\n<!-- from page.md: Three -->\n<!-- end -->\n"
    once = script.quoted(text, tmp_path)
    assert once.splitlines() == [
        *("x", "<!-- from page.md: One -->", "| a |", "| b |", "<!-- end -->"),
        *("<!-- from page.md: Three -->", "| d |", "<!-- end -->"),
    ]
    assert script.quoted(once, tmp_path) == once
    for heading in ("Two", "Four"):
        with pytest.raises(ValueError, match=heading):
            script.quoted(f"<!-- from page.md: {heading} -->\n<!-- end -->", tmp_path)


def test_what_uploads_are_said_to_take_is_what_was_measured() -> None:
    page = (ROOT / "docs" / "serving-uploads.md").read_text()
    told = page.split("## What the bound on others' prompts stops")[1].split("\n## ")[0]
    rows = read_lines(ROOT / "benchmarks/capture.jsonl")
    found = {(row["what"], row["samples"]): row for row in rows if "samples" in row and row["what"] != "newcomer"}
    summary = rows[-1]
    shares = [found[key]["share"] for key in (("copies", 20), ("copies", 80), ("copies", 100), ("mixed", 50))]
    shares += [found[key]["share"] for key in (("mixed", 75), ("mixed", 100), ("generic", 100), ("mean", 200))]
    shares += [found["mixed", 100]["shares"]["posterior"], summary["highest"]]
    assert sorted(f"{share:.1%}".replace("%", " %") for share in shares) == sorted(
        re.findall(r"[0-9]+[.][0-9] %", told)
    )
    assert (summary["newcomers"], summary["refused"], summary["highest_worst"]) == (52, 0, 0.5)
    assert (found["mixed", 50]["worst"], found["copies", 20]["worst"]) == (0.8, 1)
    refused = [key for key, row in found.items() if row["refused"]]
    assert min(samples for what, samples in refused if what == "mixed") == 75
    assert min(found[key]["adapters"] for key in refused if key[0] == "copies") == 5
