"""Measuring methods: what is written is what was answered, runs resume, tables follow from the file alone."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hilora import METHODS, HiLoRA, Pool, get_method
from hilora.cli.app import app
from hilora.errors import HiloraError, InputError, UnknownNameError
from hilora.evaluate.batches import answer_limits, schedule
from hilora.evaluate.job import Bench, Job
from hilora.evaluate.lines import constant_answers, read_answers
from hilora.evaluate.metrics import exact_match
from hilora.evaluate.report import Results, summarise
from hilora.evaluate.rows import Row, answer_hash
from hilora.evaluate.run import route_cases, run_job
from hilora.evaluate.served import served_digests
from hilora.evaluate.settings import make_cases
from hilora.evaluate.tables import TABLES, markdown_table
from hilora.planner import Planner

CLOCK = ("seconds", "shared")
HEADER = {"setup": "test", "adapters": {"alpha": "1"}, "seed": 0}
Run = Callable[..., list[dict[str, Any]]]


pytestmark = pytest.mark.usefixtures("quick_tuning")


@pytest.fixture
def world(shared_pool: Any) -> tuple[Any, Pool]:
    made: tuple[Any, Pool] = shared_pool("llama")
    return made


@pytest.fixture
def rows(world: tuple[Any, Pool], tiny: Any, tokenizer: Any, embedder: Any) -> list[Row]:
    """Four tasks in two clusters; every other reference is what the oracle answers, so that scores differ."""
    model, pool = world
    found = []
    for task, cluster in (("alpha", "one"), ("beta", "one"), ("gamma", "two"), ("delta", "two")):
        texts = tiny.texts(task, 3, seed=1)
        oracle = HiLoRA.from_pretrained(model, pool, "oracle", tokenizer=tokenizer, embedder=embedder)
        answers = oracle.generate(texts, labels=[task] * 3, max_new_tokens=3)
        for n, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            target = answer.text if n % 2 else "something else altogether"
            found.append(Row(f"{task}/{n}", task, cluster, text, target, ("exact_match", "f1")))
    return found


@pytest.fixture
def run(world: tuple[Any, Pool], tokenizer: Any, embedder: Any, rows: list[Row]) -> Run:
    model, pool = world

    def go(out: Path, setting: str = "iid", methods: str = "base,oracle,hilora", **options: Any) -> list[Any]:
        cases = make_cases(setting, rows, pool.names)
        labels = {label: (label.split(":")[0], {}) for label in methods.split(",")}
        constant = constant_answers(options.pop("train", rows))
        job = Job(setting, cases, labels, constant, max_new_tokens=3, batch_size=options.pop("batch_size", 8))
        run_job(Bench(pool, model, tokenizer, embedder, job), out, header=HEADER, **options)
        return [json.loads(line) for line in out.read_text().splitlines()]

    return go


def measured(lines: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows by key, without what depends on the clock."""
    return {
        (r["method"], r["setting"], r["split"], r["id"]): {k: v for k, v in r.items() if k not in CLOCK}
        for r in lines
        if "method" in r
    }


@pytest.mark.parametrize("setting", ["iid", "ood", "within", "cross"])
def test_every_method_is_measured_on_every_case(run: Run, rows: list[Row], tmp_path: Path, setting: str) -> None:
    lines = run(tmp_path / "out.jsonl", setting, ",".join(METHODS))
    found = measured(lines)
    splits = 2 if setting == "within" else 1
    assert len(found) == len([r for r in lines if "method" in r]) == len(METHODS) * len(rows) * splits
    assert {r["item"] for r in lines if "item" in r} == {row.id for row in rows}
    for row in rows:
        assert row.inputs not in (tmp_path / "out.jsonl").read_text()
    for (method, *_), line in found.items():
        if method not in ("oracle", "base", "merged", "lego", "adapter-soup"):
            own = line["id"].split("/")[0]
            assert line["seen"] or own not in [name for name, *_ in line["route"]]


def test_no_second_run_writes_the_same_results_meanwhile(run: Run, rows: list[Row], tmp_path: Path) -> None:
    out, told = tmp_path / "out.jsonl", []

    def meanwhile(label: str, done: int) -> None:
        with pytest.raises(InputError, match="Another run is writing") as caught:
            run(out)
        told.append(str(caught.value))

    run(out, on_rows=meanwhile)
    assert told
    assert len(measured(run(out))) == 3 * len(rows)


def test_what_is_written_is_what_generate_answers(
    run: Run, rows: list[Row], world: Any, tokenizer: Any, embedder: Any, tmp_path: Path
) -> None:
    found = measured(run(tmp_path / "out.jsonl", "ood", "hilora,mixture"))
    model, pool = world
    for method in ("hilora", "mixture"):
        router = HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder)
        for row in rows:
            answer = router.generate(row.inputs, max_new_tokens=3, deny=[row.task])[0]
            line = found[method, "ood", "ood", row.id]
            assert line["answer"] == answer_hash(answer.text)
            assert line["stats"]["exact_match"] == [exact_match(answer.text, row.targets)]
            assert [name for name, *_ in line["route"]] == answer.adapters
            assert line["rocs"] == sum(answer.rocs.values())


NO_REFERENCE = [by for by in TABLES if by != "method"]


def test_a_table_is_compared_with_a_method_of_the_results_or_refused(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out.jsonl", methods="base,mixture")

    def table(*args: str) -> Any:
        return CliRunner().invoke(app, ["evaluate", "table", str(tmp_path / "out.jsonl"), *args])

    assert table().exit_code == 0  # hilora was not measured, and nobody asked for it
    lines = [line.split("|") for line in table("--reference", "base", "--markdown").stdout.splitlines()]
    differences = {cells[1].strip(): cells[4].strip() for cells in lines if len(cells) > 4}
    assert differences["base"] == "-"
    assert differences["mixture"][0] in "+-"
    assert differences["mixture"] != "-"
    for args, words in {
        ("--reference", "hilora"): ("reference", "'hilora'", "base, mixture"),
        ("--reference", "mixtrue"): ("Did you mean 'mixture'?", "base, mixture"),
        ("--setting", "odd"): ("setting", "'odd'", "iid"),
        **{("--reference", "base", "--by", by): ("--reference", f"by {by}", "--by method") for by in NO_REFERENCE},
    }.items():
        refused = table(*args)
        assert isinstance(refused.exception, UnknownNameError | InputError)
        assert all(word in str(refused.exception) for word in words)
        assert refused.stdout == ""


def test_halves_of_a_setting_without_halves_are_refused(tmp_path: Path) -> None:
    args = ["evaluate", "tasks", "--data", "x", "--json", str(tmp_path / "y.jsonl"), "--halves", "4"]
    assert "Leave --halves away" in str(CliRunner().invoke(app, args).exception)
    assert "--halves" not in str(CliRunner().invoke(app, [*args, "--setting", "within"]).exception)


def test_training_data_that_nothing_asks_for_are_refused(tmp_path: Path) -> None:
    args = ["evaluate", "tasks", "--data", "x", "--json", str(tmp_path / "y.jsonl"), "--train", "x"]
    assert "Leave --train away" in str(CliRunner().invoke(app, args).exception)
    assert "--train" not in str(CliRunner().invoke(app, [*args, "--methods", "base,constant"]).exception)


@pytest.mark.parametrize("cut", [1, 2500, 10**6])
def test_an_interrupted_run_resumes_to_the_same_rows(run: Run, tmp_path: Path, cut: int) -> None:
    whole = run(tmp_path / "whole.jsonl", "within", "base,hilora")
    text = (tmp_path / "whole.jsonl").read_text()
    (tmp_path / "part.jsonl").write_text(text[:cut])
    again = run(tmp_path / "part.jsonl", "within", "base,hilora")
    assert measured(again) == measured(whole)
    assert len(measured(again)) == len([r for r in again if "method" in r])


def test_results_of_other_adapters_or_of_something_else_are_not_mixed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out, methods="base")
    out.write_text(out.read_text().replace('"alpha": "1"', '"alpha": "2"'))
    before = out.read_text()
    with pytest.raises(InputError, match="another adapters"):
        run(out)
    assert out.read_text() == before
    (tmp_path / "text").write_text("no json\n")
    with pytest.raises(InputError, match="no JSON Lines file of results"):
        run(tmp_path / "text")


def test_a_metric_whose_package_is_missing_is_refused_before_anything_runs(
    run: Run, rows: list[Row], tmp_path: Path, monkeypatch: Any
) -> None:
    from hilora.evaluate import metrics

    rows[-1] = replace(rows[-1], metrics=("bleu",))
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    metrics._bleu_counter.cache_clear()
    with pytest.raises(HiloraError, match="pip install 'hilora"):
        run(tmp_path / "out.jsonl", methods="base")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_fails_stops_the_run_and_is_named(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    calls = []

    def broken(self: HiLoRA, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(self, *args, **options)

    real = HiLoRA.answer_batch
    monkeypatch.setattr(HiLoRA, "answer_batch", broken)
    with pytest.raises(HiloraError, match=r"these rows: \w+/\d.*out of memory"):
        run(tmp_path / "out.jsonl", methods="hilora")
    monkeypatch.undo()
    kept = measured([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert len(kept) == 8  # the batch before
    assert kept.items() <= measured(run(tmp_path / "out.jsonl", methods="hilora")).items()


@pytest.fixture
def answered(monkeypatch: Any) -> list[int]:
    """Sizes of the batches that were answered."""
    sizes = []
    real = HiLoRA.answer_batch

    def counted(self: HiLoRA, routed: Any, batch: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        return real(self, routed, batch, *args, **options)

    monkeypatch.setattr(HiLoRA, "answer_batch", counted)
    return sizes


def test_what_no_mask_changes_is_answered_once(
    run: Run, rows: list[Row], tmp_path: Path, answered: list[int]
) -> None:
    run(tmp_path / "out.jsonl", "iid", "base,oracle")
    assert sum(answered) == 2 * len(rows)
    lines = run(tmp_path / "out.jsonl", "within", "base,oracle")
    assert sum(answered) == 2 * len(rows)
    assert len(measured(lines)) == 2 * len(rows) * 3


def test_rows_that_are_served_alike_are_answered_once_and_as_if_alone(
    run: Run, rows: list[Row], tmp_path: Path, answered: list[int], monkeypatch: Any
) -> None:
    methods = "hilora,hilora-gs,selection,mixture,ensemble"
    lines = measured(run(tmp_path / "out.jsonl", "within", methods))
    served = {line["served"] for line in lines.values()}
    assert sum(answered) == len(served) < len(lines)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sum("served" in line and not line.get("shared") for line in written) == len(served)
    before = len(answered)
    other = measured(run(tmp_path / "other.jsonl", "within", methods, also=[tmp_path / "out.jsonl"]))
    assert other == lines
    assert len(answered) == before

    numbers = iter(range(10**6))
    monkeypatch.setattr(  # no two rows are alike
        "hilora.evaluate.run.served_digests", lambda planner, routed, rows, *_: [str(next(numbers)) for _ in rows]
    )
    alone = measured(run(tmp_path / "alone.jsonl", "within", methods))
    assert sum(answered[before:]) == len(lines)
    strip = lambda found: {key: line | {"served": ""} for key, line in found.items()}  # noqa: E731
    assert strip(alone) == strip(lines)


def test_options_of_trained_methods_make_other_answers(
    world: Any, rows: list[Row], tokenizer: Any, embedder: Any
) -> None:
    model, pool = world
    cases = make_cases("iid", rows, pool.names)
    found = {}
    for label, (name, options) in {
        "two": ("phatgoose", {"k": 2}),
        "one": ("phatgoose", {"k": 1}),
        "default": ("phatgoose", {}),
        "router": ("ramole", {}),
        "other router": ("ramole", {"router": "router-all"}),
        "three": ("ramole", {"k": 3}),
    }.items():
        bench = Bench(pool, model, tokenizer, embedder, Job("iid", cases, {label: (name, options)}))
        planner = Planner(pool, get_method(name, **options), embedder)
        routed, _ = route_cases(planner, cases)
        found[label] = served_digests(planner, routed, rows, bench.limits, 0, bench.world(label))
    assert found["two"] == found["default"]
    assert found["three"] == found["router"]
    assert not set(found["one"]) & set(found["two"])
    assert not set(found["router"]) & set(found["other router"])


@pytest.mark.parametrize(
    ("method", "options"), [("hilora-plus", {}), ("hilora", {"covariance": "tied", "candidates": "top"})]
)
def test_a_masked_adapter_is_not_in_the_pool_that_is_measured(
    world: tuple[Any, Pool], rows: list[Row], embedder: Any, tmp_path: Path, method: str, options: Any
) -> None:
    """Not barred alone: what the others' statistics owe to its samples is gone as well."""
    _, pool = world

    def routes(of: Pool, apart: bool, cases: list[Any]) -> list[dict[str, float]]:
        planner = Planner(of, get_method(method, **options), embedder)
        deny = [case.deny for case in cases]
        routed = (
            route_cases(planner, cases)[0] if apart else planner.route([case.row.inputs for case in cases], deny=deny)
        )
        assert routed.route is not None
        found = zip(routed.route.ids.tolist(), routed.route.weights.tolist(), strict=True)
        return [{of.names[i]: w for i, w in zip(*row, strict=True) if w > 0} for row in found]

    cases = make_cases("ood", rows, pool.names)
    measured, barred = (routes(pool, apart, cases) for apart in (True, False))
    for task in pool.names:
        smaller = Pool.open(Path(shutil.copytree(pool.path, tmp_path / task)))
        smaller.remove(task)
        smaller.tune()
        own = [i for i, case in enumerate(cases) if case.row.task == task]
        want = routes(smaller, False, [replace(cases[i], deny=()) for i in own])
        assert [measured[i] for i in own] == [pytest.approx(row, rel=1e-4) for row in want]
    assert any(row != pytest.approx(other, rel=1e-2) for row, other in zip(measured, barred, strict=True))


def test_batches_hold_every_case_once_and_depend_on_the_seed_alone(rows: list[Row]) -> None:
    cases = make_cases("iid", rows * 5, ["alpha", "beta", "gamma", "delta"])
    lengths = [len(case.row.inputs) for case in cases]
    limits = {"alpha": 8, "beta": 16, "gamma": 8, "delta": 16}
    batches = list(schedule(cases, lengths, limits, 3, numbers=range(len(cases)), seed=0))
    assert sorted(i for batch in batches for i in batch) == list(range(len(cases)))
    assert batches == list(schedule(cases, lengths, limits, 3, numbers=range(len(cases)), seed=0))
    assert batches != list(schedule(cases, lengths, limits, 3, numbers=range(len(cases)), seed=1))
    assert max(map(len, batches)) == 3
    assert all(len({limits[cases[i].row.task] for i in batch}) == 1 for batch in batches)


def test_an_answer_may_be_as_long_as_the_tasks_longest_reference(rows: list[Row], tokenizer: Any) -> None:
    long = [replace(row, targets="x" * 20 if row.id == "alpha/1" else "y") for row in rows]
    limits = answer_limits(long, tokenizer, 64)
    assert limits == {"alpha": 32, "beta": 8, "gamma": 8, "delta": 8}
    assert answer_limits(long, tokenizer, 24)["alpha"] == 24


def test_the_constant_answer_is_the_tasks_most_frequent_training_answer(
    run: Run, rows: list[Row], tmp_path: Path
) -> None:
    train = [replace(row, targets=answer) for row in rows for answer in (f"{row.task} often", row.targets)]
    found = measured(run(tmp_path / "out.jsonl", "within", "constant", train=train))
    assert len(found) == 2 * len(rows)
    for row in rows:
        (line,) = [v for k, v in found.items() if k[2:] == ("half0", row.id)]
        assert line["answer"] == answer_hash(f"{row.task} often")
        assert line["stats"]["exact_match"] == [exact_match(f"{row.task} often", row.targets)]
        assert (line["adapters"], line["rocs"], line["route"]) == (0, 0, [])


def test_the_constant_answer_does_not_depend_on_the_rows_that_are_scored(
    run: Run, rows: list[Row], tmp_path: Path
) -> None:
    few = [row for row in rows if row.id.endswith("/1")]
    told = {}
    for name, train in (("all", rows), ("few", few)):
        lines = run(tmp_path / name, "iid", "constant", train=train)
        told[name] = {line["answer"] for line in lines if "method" in line}
    assert told["few"] == {answer_hash(row.targets) for row in few}
    assert told["all"] == {answer_hash("something else altogether")}


def test_constant_without_training_answers_of_every_task_is_refused(
    run: Run, rows: list[Row], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"none is known of beta, delta\. Give --train"):
        run(tmp_path / "x", "iid", "constant", train=[row for row in rows if row.task in ("alpha", "gamma")])
    run(tmp_path / "x", "iid", "base", train=[])


# --- tables -------------------------------------------------------------------------------------------


def test_summaries_follow_from_the_rows_by_loops(run: Run, rows: list[Row], tmp_path: Path) -> None:
    found = measured(run(tmp_path / "out.jsonl", "within", "base,oracle,hilora,mixture"))
    summaries = {s.method: s for s in summarise(Results([tmp_path / "out.jsonl"]), "within")}
    assert list(summaries) == ["base", "oracle", "hilora", "mixture"]
    base_right = {
        key[2:] for key, line in found.items() if key[0] == "base" and line["stats"]["exact_match"] == [1.0]
    }
    for method, s in summaries.items():
        own = {key: line for key, line in found.items() if key[0] == method}
        for task in ("alpha", "beta", "gamma", "delta"):
            of_task = [line["stats"] for key, line in own.items() if key[3].startswith(task)]
            want = np.mean([np.mean([st[m][0] for st in of_task]) for m in ("exact_match", "f1")])
            assert s.tasks[task] == pytest.approx(100 * want)
        assert s.clusters["one"] == pytest.approx((s.tasks["alpha"] + s.tasks["beta"]) / 2)
        assert s.average.value == pytest.approx(np.mean(list(s.tasks.values())))
        assert s.average.low <= s.average.value <= s.average.high
        assert s.num_rows == 2 * len(rows)
        assert s.of_oracle == pytest.approx(100 * s.average.value / summaries["oracle"].average.value)
        wrong = {key[2:] for key, line in own.items() if line["stats"]["exact_match"] == [0.0]}
        assert s.harm == (None if not base_right else pytest.approx(100 * len(base_right & wrong) / len(base_right)))
    assert summaries["hilora"].difference is None
    difference = summaries["mixture"].difference
    assert difference is not None
    assert difference.value == pytest.approx(summaries["mixture"].average.value - summaries["hilora"].average.value)


def test_seen_rows_alone_can_be_summarised(run: Run, rows: list[Row], tmp_path: Path) -> None:
    run(tmp_path / "out.jsonl", "within", "oracle,hilora")
    results = Results([tmp_path / "out.jsonl"])
    parts = [summarise(results, "within", keep=lambda r, seen=seen: r["seen"] == seen) for seen in (True, False)]
    assert [s.num_rows for part in parts for s in part] == [len(rows)] * 4


@pytest.mark.parametrize("by", TABLES)
def test_tables_have_a_cell_for_everything(run: Run, tmp_path: Path, by: str) -> None:
    run(tmp_path / "out.jsonl", "iid", "base,constant,oracle,hilora,merged")
    heading, cells = TABLES[by](summarise(Results([tmp_path / "out.jsonl"]), "iid"))
    assert all(len(row) == len(heading) for row in cells)
    text = markdown_table(heading, cells)
    assert text.count("\n") == len(cells) + 1
    assert ("**" in text) == (by != "cost")
    if by == "method":
        assert [row[0] for row in cells] == ["base", "constant", "oracle", "hilora", "merged"]
        assert "**" not in next(row for row in cells if row[0] == "oracle")[1]


def test_a_method_with_fewer_rows_is_compared_on_the_rows_that_all_have(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out, methods="oracle,hilora")
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-4]))
    for s in summarise(Results([out]), "iid"):
        assert s.num_rows == 8


def test_rows_are_not_appended_to_an_archive(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    with pytest.raises(InputError, match=r"appended to .*out\.jsonl\.gz.* plain lines.* --json .*out\.jsonl, unpack"):
        run(out)
    assert not out.exists()


def test_packed_results_are_the_plain_ones(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out, "within", "base,hilora")
    packed = tmp_path / "out.jsonl.gz"
    packed.write_bytes(gzip.compress(out.read_bytes()))
    assert summarise(Results([packed]), "within") == summarise(Results([out]), "within")
    assert read_answers([packed]) == read_answers([out])
    packed.write_bytes(packed.read_bytes()[:-5])
    for read in (Results, read_answers):
        with pytest.raises(InputError, match="Expected a whole gzip archive"):
            read([packed])


def test_no_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text(json.dumps(HEADER) + "\n")
    with pytest.raises(InputError, match="no results"):
        Results([tmp_path / "none.jsonl"])
