"""Smoke tests: the papers' experiments run from data to tables on a tiny model, and resume."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilora import Pool
from hilora.evaluate.rows import Row, choose_rows, load_rows
from hilora.jsonl import read_lines, read_text
from tests.reproduce.conftest import CLUSTERS

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("quick_tuning")


def measured(rows: Path) -> dict[str, int]:
    """File -> how many rows of methods it has."""
    return {path.name: sum("method" in row for row in read_lines(path)) for path in rows.glob("[!.]*.jsonl*")}


def test_a_run_leaves_out_rows_that_others_have_used_and_tasks_with_an_adapter(scripts: Any) -> None:
    scripts.load("reproduce/hilora/run.py")
    run = sys.modules["experiments"].Run
    rows = [Row(f"{task}/{i}", task, "c", "x", "y", ("exact_match",)) for task in "abc" for i in range(30)]
    used = run("one", ["iid"], (), "", per_task=4).rows(rows, "ab")
    fresh = run("two", ["iid"], (), "", per_task=5, skip=4).rows(rows, "ab")
    both = run("three", ["iid"], (), "", per_task=9).rows(rows, "ab")
    assert sorted(row.id for row in [*used, *fresh]) == sorted(row.id for row in both)
    assert len({row.id for row in both}) == len(both) == 27
    assert all(int(row.id[2:]) >= 15 for row in both)  # of the second halves
    strange = run("four", ["mixed"], (), "", per_task=2, strange=True).rows(rows, "ab")
    assert [row.task for row in strange] == ["c", "c"]


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5], [0.9, 0.001, 0.2, 0.001], [0.03, 0.03]])
def test_holm_rejects_from_the_smallest_on_until_one_is_too_large(p: list[float], scripts: Any) -> None:
    adjusted = scripts.load("reproduce/hilora/decide.py").holm(p)
    for alpha in (0.005, 0.02, 0.05, 0.061, 0.3, 0.95):
        rejected = set()
        for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[place] > alpha / (len(p) - rank):
                break
            rejected.add(place)
        assert {place for place, value in enumerate(adjusted) if value <= alpha} == rejected


@pytest.mark.parametrize("name", ["hilora", "ramole"])
def test_a_papers_experiments_run_resume_and_become_tables(
    name: str, world: Any, use_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    script = scripts.load(f"reproduce/{name}/run.py")
    use_tiny(sys.modules["experiments"])
    if name == "hilora":  # all methods are in "cross" and "within"
        texts = (tmp_path / "data" / "flan_mini" / "val" / "alpha.jsonl").read_text()
        strange = tmp_path / "data" / "flan_mini" / "val" / "epsilon.jsonl"  # a task without an adapter
        strange.write_text(texts.replace('"task": "alpha"', '"task": "epsilon"'))
        short = {"gamma": script.GAMMAS, "ablation": script.ABLATIONS[:2]}
        short |= dict.fromkeys(("iid", "nli"), ("hilora", "hilora-plus"))
        short |= {"rivals-choose": script.TRIED[::9], "confirm": ("hilora-plus", "logo")}
    else:
        short = {"number": script.NUMBERS[1::5]}
    few = {r.name: ("base", "oracle", *short[r.name]) if r.name in short else r.methods for r in script.RUNS}
    runs = [replace(r, per_task=2, methods=few[r.name], skip=0) for r in script.RUNS]
    if name == "ramole":
        runs = [replace(r, clusters=None) for r in runs]
    monkeypatch.setattr(script, "RUNS", runs)
    rows = tmp_path / "rows"
    options = ["--data", tmp_path / "data", "--pool", pool.path, "--out", rows, "--dtype", "fp32"]
    scripts.run(script, *options, "--only", runs[0].name)
    first = rows / f"{runs[0].name}.jsonl.gz"
    assert list(rows.glob("[!.]*")) == [first]
    scripts.run(script, *options)
    before = measured(rows)
    assert before.keys() == {f"{run.name}.jsonl.gz" for run in runs}
    lines = read_text(first).splitlines(keepends=True)
    (rows / f"{runs[0].name}.jsonl").write_text("".join(lines[: len(lines) // 2]))  # as an interrupted run leaves it
    assert measured(rows) != before
    scripts.run(script, *options)
    assert measured(rows) == before
    texts = {path: read_text(path) for path in rows.glob("[!.]*")}
    scripts.run(script, *options, "--again", "constant")  # the same answers, in new lines
    assert measured(rows) == before
    for path, text in texts.items():
        kept, now = ([x for x in lines.splitlines() if '"method"' in x] for lines in (text, read_text(path)))
        assert sorted(kept) == sorted(now)
        labels = [json.loads(line)["method"] for line in now]
        assert labels[len(labels) - labels.count("constant") :] == ["constant"] * labels.count("constant")
    scripts.run(scripts.load(f"reproduce/{name}/tables.py"), "--rows", rows, "--out", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| hilora |" in text
    assert f"| {runs[0].name} ({runs[0].settings[0]}) |" in text.split("## Time")[1]
    assert "nan" not in text
    if name == "ramole":
        scripts.run(scripts.load("reproduce/ramole/wording.py"), "--rows", rows, "--out", tmp_path)
        of_tasks = (tmp_path / "wording.md").read_text().split("\n## ")[2:]
        assert len(of_tasks) == 4
        assert all("| constant | " in part and " | 100 | - | - |" in part for part in of_tasks)
        assert all(re.search(r"\| oracle \| [\d.]+ \| \d+ \| 100 \| - \|", part) for part in of_tasks)
    if name == "hilora":
        scripts.run(scripts.load("reproduce/hilora/intervals.py"), "--rows", rows, "--out", tmp_path)
        (tmp_path / "all" / "hilora").mkdir(parents=True)
        shutil.copytree(rows, tmp_path / "all" / "hilora" / "rows")
        scripts.run(scripts.load("reproduce/hilora/decide.py"), "--rows", tmp_path / "all", "--out", tmp_path)
        text = (tmp_path / "decide.md").read_text()
        assert "One family of 5 comparisons" in text  # none of RAMoLE's prompts
        assert "Not there yet: other wording" in text
        text = (tmp_path / "intervals.md").read_text()
        assert "## within, all tasks: 32 rows of 8 prompts" in text
        assert "nan" not in text


@pytest.mark.parametrize(
    ("name", "methods"), [("hilora", ("base", "hilora", "ramole")), ("ramole", ("fusion", "ramole"))]
)
def test_throughput_is_measured_and_drawn(
    name: str,
    methods: tuple[str, ...],
    world: Any,
    use_tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: Any,
) -> None:
    pool, _ = world
    script = scripts.load(f"reproduce/{name}/throughput.py")
    use_tiny(script)
    monkeypatch.setattr(script, "METHODS", methods)
    monkeypatch.setattr(script, "TESTED", 1, raising=False)
    few = ["--at", "1", "2", "--batch", "4", "--new-tokens", "2", "--rounds", "1"]
    out = tmp_path / "throughput"
    scripts.run(script, "--data", tmp_path / "data", "--pool", pool.path, "--out", out, *few)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    shown = [*methods, "single", "base"] if name == "ramole" else methods
    assert [(line["at"], line["method"]) for line in lines[1:]] == [(at, m) for at in (1, 2) for m in shown]
    assert all(line["least"] <= line["tokens_per_s"] <= line["most"] for line in lines[1:])
    first = [json.dumps(line) for line in lines if line.get("at") != 2]
    out.with_suffix(".jsonl").write_text("\n".join(first) + "\n")  # as if the second place had been interrupted
    scripts.run(script, "--data", tmp_path / "data", "--pool", pool.path, "--out", out, *few)
    resumed = out.with_suffix(".jsonl").read_text().splitlines()
    assert resumed[: len(first)] == first
    assert len(resumed) == len(lines)
    made = {kind: out.with_suffix(kind).read_bytes() for kind in (".md", ".svg")}
    scripts.run(script, "--out", out)
    assert made == {kind: out.with_suffix(kind).read_bytes() for kind in (".md", ".svg")}


def test_lorahub_makes_an_adapter_for_each_task_of_the_others(
    world: Any, use_tiny: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    script = scripts.load("reproduce/ramole/lorahub.py")
    for module in (script, sys.modules["experiments"]):
        use_tiny(module)
    monkeypatch.setattr(script, "RECIPE", replace(script.RECIPE, evaluations=3, per_task=2))
    for task in pool.names:
        rows = [json.dumps({"inputs": text, "targets": "b"}) for text in tiny.texts(task, 4, seed=6)]
        (tmp_path / f"data/flan_mini/train/{task}.jsonl").write_text("\n".join(rows))
    options = [
        "--data",
        tmp_path / "data",
        "--pool",
        pool.path,
        "--work",
        tmp_path / "work",
        "--out",
        tmp_path / "rows",
    ]
    scripts.run(script, *options)
    made = Pool.open(tmp_path / "work/pool")
    assert set(made.names) == set(pool.names)
    for task in made.names:
        assert task not in json.loads((tmp_path / "work" / task / "recipe.json").read_text())["weights"]
    before = measured(tmp_path / "rows")
    monkeypatch.setattr(script, "make_adapter", None)  # what is made is not made again, nor asked
    scripts.run(script, *options)
    assert measured(tmp_path / "rows") == before == {"lorahub.jsonl.gz": 2 * 32}
    scripts.run(scripts.load("reproduce/ramole/tables.py"), "--rows", tmp_path / "rows", "--out", tmp_path)
    assert "an adapter made for each task" in (tmp_path / "results.md").read_text()


def test_prompts_for_two_adapters_are_shown_with_everyones_answer(
    world: Any, use_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    script = scripts.load("reproduce/ramole/showcase.py")
    use_tiny(script)
    monkeypatch.setattr(script, "CASES", [script.Case("Two of them", "first | line\nsecond", ("alpha", "beta"))])
    scripts.run(script, "--pool", pool.path, "--out", tmp_path / "showcase.md")
    text = (tmp_path / "showcase.md").read_text()
    asked = (
        "base",
        "alpha alone",
        "beta alone",
        "both, equal weights",
        "ramole, of these two",
        "hilora-plus, of all",
    )
    assert all(f"\n| {who} | " in text for who in asked)
    assert "alpha 0.50" in text
    assert "> first | line\n> second" in text


def test_adapters_are_checked_and_those_trained_anew_checked_again(
    world: Any, use_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any
) -> None:
    pool, _ = world
    monkeypatch.syspath_prepend(str(ROOT / "reproduce" / "pool"))
    check = scripts.load("reproduce/pool/check.py")
    use_tiny(check)
    out = tmp_path / "check"
    out.mkdir()
    options = ["--data", tmp_path / "data" / "flan_mini" / "val", "--pool", pool.path, "--out", out]
    scripts.run(check, *options)
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert verdicts.keys() == CLUSTERS.keys()
    assert set(verdicts.values()) <= set(check.REASONS)
    table = (out / "check.md").read_text()
    assert all(f"| {task} |" in table for task in CLUSTERS)
    text = read_text(out / "check.jsonl.gz")
    assert not (out / "check.jsonl").exists()
    scripts.run(check, "--out", out)  # from the rows alone
    assert (out / "check.md").read_text() == table
    own = next(entry.hash[:16] for entry in pool.entries if entry.name == "alpha")
    (out / "check.jsonl").write_text(text.replace(own, "another"))
    check.forget_changed(out / "check.jsonl", {entry.name: entry.hash[:16] for entry in pool.entries})
    left = read_lines(out / "check.jsonl")
    assert {r["id"].split("/")[0] for r in left if r.get("method") == "oracle"} == set(CLUSTERS) - {"alpha"}
    assert len([r for r in left if r.get("method") == "base"]) == 16
    scripts.run(check, *options)  # what was taken out is measured again, from the plain file that counts first
    assert measured(out)["check.jsonl.gz"] == text.count('"method"')


def test_verdicts_ask_for_more_than_base_and_the_constant_answer(scripts: Any) -> None:
    sys.path.insert(0, str(ROOT / "reproduce" / "pool"))
    check = scripts.load("reproduce/pool/check.py")
    assert check.verdict(10, 20, 30) == "kept"
    assert check.verdict(10, 30, 30) == "constant"
    assert check.verdict(30, 10, 30) == "base"


def test_what_leaving_strange_prompts_to_base_costs_is_measured(
    tmp_path: Path, shared_pool: Any, tiny: Any, embedder: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = shared_pool("llama")
    module = scripts.load("reproduce/hilora/fallback.py")
    monkeypatch.setattr(module, "Embedder", lambda name: embedder)
    monkeypatch.setattr(module, "POOL", pool.path)
    monkeypatch.setattr(module, "ROWS", tmp_path)
    monkeypatch.setattr(module, "SETTINGS", {"iid": 2})
    held: list[dict[str, Any]] = []
    for task in pool.names:
        rows = [{"task": task, "cluster": "all", "inputs": text, "targets": "x"} for text in tiny.texts(task, 8, 3)]
        (tmp_path / "flan_mini" / "val").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "flan_mini" / "val" / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for row in choose_rows(load_rows(path), part="second", per_task=2):
            held.append(
                {"item": row.id, "task": task, "cluster": "all", "prompt": row.id, "reference": "r"}
                | {"metrics": ["exact_match"]}
            )
            for method in ("base", "oracle", "hilora", "hilora-plus"):
                stats = {"exact_match": [float(method != "hilora")]}
                where = {"setting": "iid", "split": "iid", "adapters": 1, "rocs": 8, "tokens": [3, 1], "seconds": 1}
                held.append({"method": method, "id": row.id, "stats": stats, "answer": "a"} | where)
    (tmp_path / "iid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    scripts.run(module, "--data", tmp_path, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "fallback.json").read_text())["iid"]
    assert found["hilora"][1:3] == [0.0, 100.0]
    assert found["base"][:3] == [100.0, 100.0, 0.0]
    shares = [found[str(share)][0] for share in module.SHARES]
    assert shares == sorted(shares)
    assert all(found[str(share)][1] == 100.0 for share in module.SHARES)


def test_the_constant_answer_of_a_task_is_one_in_all_committed_rows() -> None:
    answers: dict[str, set[str]] = {}
    for path in sorted((ROOT / "reproduce").glob("*/rows/*.jsonl.gz")):
        for line in read_lines(path):
            if line.get("method") == "constant":
                answers.setdefault(line["id"].split("/")[0], set()).add(line["answer"])
    assert len(answers) == 52
    assert {len(of_task) for of_task in answers.values()} == {1}
