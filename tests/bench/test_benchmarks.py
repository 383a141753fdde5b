"""Smoke tests: every benchmark runs from start to end on something tiny. No speed is asserted."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from hilora import HiLoRA
from hilora.base.embed import describe_embedder
from hilora.bench import run as running
from hilora.engine.ahead import Ahead
from hilora.planner import Planner
from hilora.pool.pool import Pool
from hilora.types import Completion
from tests.base.test_quantised import make_base

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bench_scripts(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Scripts that import one another."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return scripts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_random_pools_are_adapters_of_the_rank_and_sites_asked_for(
    bench_scripts: Any, shared_pool: Any, tmp_path: Path, tokenizer: Any
) -> None:
    model, pool = shared_pool("llama")
    copy.deepcopy(model).to(torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    made = bench_scripts.load("benchmarks/made.py")
    found = made.random_pool(tmp_path, str(tmp_path / "base"), 3, 2, ("q_proj", "down_proj"), pool.embedder)
    assert sorted(found.names) == ["a0", "a1", "a2"]
    assert {entry.rank for entry in found.entries} == {2}
    assert {site.rsplit(".", 1)[-1] for site in found.factors(found.entries[0].hash)} == {"q_proj", "down_proj"}
    assert len({entry.hash for entry in found.entries}) == 3


def test_throughput_times_each_case_once(
    bench_scripts: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    original = HiLoRA.from_pretrained

    def load(base: Any, opened: Any, method: str = "hilora", **_: Any) -> HiLoRA:
        return original(copy.deepcopy(model), opened, method, tokenizer=tokenizer, embedder=embedder)

    monkeypatch.setattr(running.HiLoRA, "from_pretrained", load)
    script = bench_scripts.load("benchmarks/throughput.py")
    small = {"batch": 4, "adapters": 2, "words": 3, "new_tokens": 2, "rounds": 1, "contenders": ("base", "hilora")}
    monkeypatch.setattr(script, "CASES", (script.Case("one", settings=small), script.Case("two", settings=small)))
    out = tmp_path / "throughput.jsonl"
    bench_scripts.run(script, "--pool", pool.path, "--json", out, "--only", "two")
    bench_scripts.run(script, "--pool", pool.path, "--json", out)
    assert [line["case"] for line in lines(out)] == ["two", "one"]
    assert all(line["hilora_over_base"] > 0 and line["embedding_s"] >= 0 for line in lines(out))


def test_forms_times_the_pieces_of_a_step_and_both_forms(
    bench_scripts: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/forms.py")
    changed = copy.deepcopy(model)
    monkeypatch.setattr(script, "load_base", lambda name: (changed, tokenizer))
    monkeypatch.setattr(script, "Planner", lambda opened, method: Planner(opened, method, embedder))
    small = ("--rounds", 1, "--batches", 2, "--tokens", 3)
    bench_scripts.run(script, "--pool", pool.path, *small, "--json", tmp_path / "out.jsonl")
    steps, *forms = lines(tmp_path / "out.jsonl")
    assert all(
        steps[name]["of_base"] > 0 for name in ("base", *script.PIECES, script.PACKED, "hilora", "hilora, hooks")
    )
    assert steps["base"]["of_base"] == 1
    assert [(line["adapters"], line["used"], line["spared"]) for line in forms] == [
        (8, 1, 21),
        (8, 3, 5),
        (32, 1, 93),
    ]
    assert not any(module._forward_hooks or "forward" in vars(module) for module in changed.modules())


def test_embeddings_are_compared_in_both_precisions(
    bench_scripts: Any, embedder: Any, tiny: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = bench_scripts.load("benchmarks/embedding.py")
    monkeypatch.setattr(script, "Embedder", lambda dtype: embedder)
    monkeypatch.setattr(script, "runtimes", lambda folder: {})  # whatever is installed
    for name, seed in (("samples", 0), ("test_half", 1)):
        rows = [{"task": task, "inputs": text} for task in tiny.tasks for text in tiny.texts(task, 6, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench_scripts.run(script, "--data", tmp_path, "--rounds", 1, "--json", tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [line["batch"] for line in found if "batch" in line] == [1, 8, 32]
    tops = {(line["dtype"], line["method"]): line["top"] for line in found if "top" in line}
    assert all(tops["fp32", method] == tops["bf16", method] for method in script.METHODS)  # the same embedder here


def test_start_counts_imports_by_package_and_runs_commands(
    bench_scripts: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = bench_scripts.load("benchmarks/start.py")
    log = "import time: self [us] | cumulative | imported package\nimport time:      1500 |   2000 | torch._C\n"
    assert script.imports(log + "import time:       500 |    500 |   torch\n") == [("torch", 2.0)]
    monkeypatch.setattr(script, "COMMANDS", {"help": ["--help"], "route": ["--help"]})
    bench_scripts.run(script, "--runs", 1, "--json", tmp_path / "start.jsonl")
    assert [line["command"] for line in lines(tmp_path / "start.jsonl") if "command" in line] == ["help", "route"]
    assert lines(tmp_path / "start.jsonl")[-1]["imports_ms"]


def test_start_of_large_pools_is_timed_with_kept_statistics_and_without(
    bench_scripts: Any, shared_pool: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    _, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/start.py")
    kept: list[bool] = []

    def run(arguments: list[str], where: str, *flags: str) -> tuple[float, str]:
        kept.append(any(Path(where).glob("statistics/*")))
        return 0.5, ""

    monkeypatch.setattr(script, "run", run)
    bench_scripts.run(
        script, "--pool", pool.path, "--runs", 2, "--adapters", 5, 9, "--json", tmp_path / "start.jsonl"
    )
    found = [line for line in lines(tmp_path / "start.jsonl") if "adapters" in line]
    assert [line["adapters"] for line in found] == [5] * 3 + [9] * 3
    assert [line.get("statistics") for line in found] == ["fitted", None, "kept"] * 2
    assert all(line["fit_s"] >= 0 and line["mb"] > 0 for line in found if "fit_s" in line)
    assert kept[-12:] == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    assert not any(path.name.startswith(".bench-") for path in pool.path.parent.iterdir())
    targets = bench_scripts.load("benchmarks/targets.py")
    told = [row[0] for row in targets.other_targets(tmp_path)]
    assert "`hilora route`, hilora-plus, over 9 adapters, statistics kept" in told
    assert "... fitting 5 and keeping it" in told


ARRIVALS = ["--requests", 5, "--rates", 0.5, 50, "--words", 1, 3, "--new-tokens", 1, 4, "--batch", 2]


@pytest.fixture
def tiny_routers(shared_pool: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The tiny pool; routers over it are loaded with a tiny base and embedder."""
    model, pool = shared_pool("llama")
    original = HiLoRA.from_pretrained

    def load(pool: Any, method: str) -> HiLoRA:
        return original(copy.deepcopy(model), pool, method, tokenizer=tokenizer, embedder=embedder)

    monkeypatch.setattr(HiLoRA, "from_pretrained", load)
    found: Pool = pool
    return found


def test_requests_that_arrive_are_served_both_ways_at_every_rate_once(
    bench_scripts: Any, tiny_routers: Pool, tmp_path: Path
) -> None:
    script, out = bench_scripts.load("benchmarks/arrivals.py"), tmp_path / "arrivals.jsonl"
    options = ["--pool", tiny_routers.path, *ARRIVALS, "--json", out]
    bench_scripts.run(script, *options, "--methods", "hilora")
    bench_scripts.run(script, *options, "--methods", "hilora", "mixture")
    found = lines(out)
    assert [(line["method"], line["rate"], line["way"]) for line in found] == [
        (method, rate, way) for method in ("hilora", "mixture") for rate in (0.5, 50) for way in ("engine", "batches")
    ]
    asked = script.make_requests(["p"] * 5, (1, 4), 0)
    for line in found:
        assert line["tokens_per_s"] * line["seconds"] == pytest.approx(sum(r.tokens for r in asked), rel=0.1)
        assert line["requests_per_s"] * line["seconds"] == pytest.approx(5, rel=0.1)
        assert 0 < line["first_s"]["p50"] <= line["latency_s"]["p95"]
        assert (line["token_ms"] is None) == (line["way"] == "batches")
        assert 1 <= line["distinct"] <= 4
    for method in ("hilora", "mixture"):
        assert len({line["offline_per_s"] for line in found if line["method"] == method}) == 1
        assert len({line["distinct"] for line in found if line["method"] == method}) == 1  # whoever serves, and when
    page = bench_scripts.load("benchmarks/targets.py").page(tmp_path)
    assert page.split("## Arrivals")[1].count("\n| ") == 2 + len(found)


def test_requests_arrive_at_random_and_are_the_same_whatever_the_rate(bench_scripts: Any) -> None:
    script = bench_scripts.load("benchmarks/arrivals.py")
    some = script.make_requests(script.made_prompts(2000, (3, 9), 1), (8, 64), 1)
    assert some == script.make_requests(script.made_prompts(2000, (3, 9), 1), (8, 64), 1)
    assert {len(each.prompt.split()) for each in some} == set(range(3, 10))
    assert (min(each.tokens for each in some), max(each.tokens for each in some)) == (8, 64)
    gaps = torch.tensor([each.arrives for each in some]).diff()
    assert some[0].arrives == 0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1, abs=0.1)
    assert gaps.std() == pytest.approx(1, abs=0.1)  # as of no other gaps that are 1 in the mean


def test_a_stream_is_told_in_seconds_since_each_arrived(bench_scripts: Any) -> None:
    script = bench_scripts.load("benchmarks/arrivals.py")
    served = script.Served
    told = script.figures([served(5, 0.0, 1.0, 3.0, ["a"]), served(1, 2.0, 4.0, 4.0, ["a", "b"])])
    assert (told["seconds"], told["requests_per_s"], told["tokens_per_s"]) == (4.0, 0.5, 1.5)
    assert told["first_s"]["p50"] == 1.5
    assert told["latency_s"]["p50"] == 2.5
    assert told["token_ms"] == {"p50": 500.0, "p95": 500.0}  # of four tokens after the first
    assert told["latency_token_ms"]["p50"] == 1300.0
    assert (told["adapters"], told["distinct"]) == (1.5, 2)


def test_a_batch_is_of_those_that_wait_and_runs_to_the_longest_answer_wanted(bench_scripts: Any) -> None:
    script, calls = bench_scripts.load("benchmarks/arrivals.py"), list[tuple[int, int]]()

    class Router:
        def generate(self, prompts: list[str], *, max_new_tokens: int, **options: Any) -> list[Completion]:
            calls.append((len(prompts), max_new_tokens))
            return [Completion("", "length", completion_tokens=max_new_tokens) for _ in prompts]

    asked = [script.Asked("p", tokens, 0.0) for tokens in (3, 9, 2, 5, 4)]
    found = script.in_batches(Router(), [script.Asked("p", 1, 0.0)], 1e3, 2)
    assert [each.first == each.done for each in found] == [True]
    calls.clear()
    found = script.in_batches(Router(), asked, 1e3, 2)
    assert [each.tokens for each in found] == [3, 9, 2, 5, 4]
    assert sum(rows for rows, _ in calls) == 5
    assert all(rows <= 2 for rows, _ in calls)
    places = [sum(rows for rows, _ in calls[:n]) for n in range(len(calls))]
    assert [most for _, most in calls] == [
        max(each.tokens for each in asked[start : start + rows])
        for start, (rows, _) in zip(places, calls, strict=True)
    ]


def test_an_answer_that_is_cut_short_and_settings_without_sense_are_refused(
    bench_scripts: Any, tmp_path: Path
) -> None:
    script = bench_scripts.load("benchmarks/arrivals.py")
    with pytest.raises(SystemExit, match="0 tokens instead of 3"):
        script.served(script.Asked("p", 3, 0.0), 0.0, 1.0, 1.0, Completion("", "abstain"))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"inputs": text, "targets": "t"}) + "\n" for text in "abc")
    )
    assert sorted(script.real_prompts(tmp_path / "rows.jsonl", 3, 0)) == ["a", "b", "c"]
    with pytest.raises(SystemExit, match="--requests 3"):
        script.real_prompts(tmp_path / "rows.jsonl", 4, 0)
    for wrong in (["--new-tokens", 9, 8], ["--words", 0, 8], ["--rates", 0], ["--batch", 0]):
        with pytest.raises(SystemExit):
            bench_scripts.run(script, *wrong)


def test_changes_of_rows_and_adapters_are_timed_beside_a_step(
    bench_scripts: Any, shared_pool: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script, changed = bench_scripts.load("benchmarks/changes.py"), copy.deepcopy(model)
    monkeypatch.setattr(script, "load_base", lambda name: (changed, tokenizer))
    small = ("--adapters", 1, 3, "--rows", 1, 2, "--rounds", 1)
    bench_scripts.run(script, "--pool", pool.path, *small, "--json", tmp_path / "changes.jsonl")
    header, one, two, *told = lines(tmp_path / "changes.jsonl")
    assert header["rounds"] == 1
    assert [(line["change"], line["rows"]) for line in (one, two)] == [(None, 1), (None, 2)]
    assert [(line["adapters"], line["rows"], line["change"]) for line in told] == [
        (adapters, rows, change) for adapters in (1, 3) for rows in (1, 2) for change in script.CHANGES
    ]
    assert all(line["ms"]["median"] > 0 for line in (one, two, *told))
    assert not any(module._forward_hooks or "forward" in vars(module) for module in changed.modules())
    page = bench_scripts.load("benchmarks/targets.py").page(tmp_path)
    assert page.split("## Changes")[1].count("\n| ") == 2 + 2 + 2 * len(script.CHANGES)
    with pytest.raises(SystemExit):
        bench_scripts.run(script, "--pool", pool.path, "--adapters", len(pool))


@pytest.mark.parametrize(("adapters", "rows"), [(1, 1), (1, 3), (5, 1), (5, 2), (4, 4), (2, 5)])
def test_before_a_change_all_adapters_are_in_use_and_after_it_what_the_change_says(
    bench_scripts: Any, shared_pool: Any, adapters: int, rows: int
) -> None:
    script, (_, pool) = bench_scripts.load("benchmarks/changes.py"), shared_pool("llama")
    source, bank = copy.copy(pool), Mock()
    source.entries = (*pool.entries, *pool.entries)  # more than the tiny pool has

    def used(found: Any) -> list[tuple[int, ...]]:
        return [request.plan.ids for request in found]

    there = used(script.requests(bank, source, script.shared_out(adapters, rows)))
    assert len(there) == rows
    assert all(there)
    assert {each for row in there for each in row} == set(range(adapters))
    for change in script.CHANGES:
        before, after = script.before_and_after(change, bank, source, adapters, rows)
        known = {each for found in before for row in used(found) for each in row}
        assert used(after) == (there if change in (script.LEAVES, script.NEW) else [*there, (adapters,)])
        if before:
            assert set(before[-1]) ^ set(after) == {(before[-1] if change == script.LEAVES else after)[-1]}
        assert (adapters in known) == (change == script.COMES)


STUBBORN = """
import os, signal, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
told = []
signal.signal(signal.SIGINT, lambda *_: told.append(1))
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
os.write(log, b"." * 100)
last = 0
while not told:
    time.sleep(0.01)
    try:
        os.write(1, b"word\\n")
    except BrokenPipeError:
        told.append(1)
os.write(log, b"..")
sys.exit(7)
"""
"""In the place of hilora: two steps more once it is told to stop."""


def test_ending_counts_what_is_generated_after_nobody_wants_it(
    bench_scripts: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/ending.py")
    original = HiLoRA.from_pretrained

    def load(pool: Any) -> HiLoRA:
        return original(copy.deepcopy(model), pool, tokenizer=tokenizer, embedder=embedder)

    monkeypatch.setattr(script.HiLoRA, "from_pretrained", load)
    monkeypatch.setattr(script, "MOST", 60)
    monkeypatch.setattr(script, "CHILD", [sys.executable, "-c", STUBBORN])
    bench_scripts.run(script, "--pool", pool.path, "--runs", 1, "--json", tmp_path / "out.jsonl")
    header, left, *told = lines(tmp_path / "out.jsonl")
    assert header["pool"] == pool.path.name
    assert left["case"] == "break"
    assert left["tokens_after"][0] <= 1  # the law of `engine.stream`
    assert [(line["case"], line["tokens_after"], line["exit"]) for line in told] == [
        (case, [2], [7]) for case in script.COMMANDS
    ]
    assert all("upper bounds" in line["seconds_are"] for line in (left, *told))


def test_ending_counts_steps_of_the_real_command(bench_scripts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The part that stands around hilora in a process of its own counts, and changes nothing."""
    script = bench_scripts.load("benchmarks/ending.py")
    model = torch.nn.Linear(2, 2)
    (tmp_path / "steps").write_bytes(b"")
    outputs = []

    def command() -> int:
        built = object.__new__(HiLoRA)
        HiLoRA.__init__(built, model)  # type: ignore[call-arg]
        outputs.append(model(torch.ones(1, 2)))
        return 0

    monkeypatch.setattr(HiLoRA, "__init__", lambda *args, **options: None)
    monkeypatch.setattr("hilora.cli.main", command)
    monkeypatch.setattr(sys, "argv", ["script"])
    script.child(str(tmp_path / "steps"), ["generate", "x"])
    assert sys.argv == ["hilora", "generate", "x"]
    assert (tmp_path / "steps").read_bytes() == b"."
    assert torch.equal(outputs[0], model.weight.sum(1) + model.bias[None])


def test_selection_agrees_with_the_exact_best(
    bench_scripts: Any, shared_pool: Any, embedder: Any, tmp_path: Path
) -> None:
    _, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/selection.py")
    bench_scripts.monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **options: embedder)
    bench_scripts.monkeypatch.setattr(script, "AT_ONCE", 70)
    options = ["--adapters", 4, 20, "--prompts", 8, "--near", 150, "--members", 9, "--compared", 6]
    bench_scripts.run(script, "--pool", pool.path, *options, "--json", tmp_path / "s.jsonl")
    found = lines(tmp_path / "s.jsonl")
    assert {line["adapters"] for line in found if "adapters" in line} >= {4, 20}
    (near,) = [line for line in found if "near" in line]
    assert near["members"] == 9
    assert 0 < near["share"] <= near["agreement"] <= near["top1"] == 1


def test_pools_of_any_size_are_opened_changed_and_timed(
    bench_scripts: Any, tiny: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/pool.py")
    monkeypatch.setattr(script, "CHANGES", 2)
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name, **options: embedder)
    monkeypatch.setattr(script, "load_base", lambda name, dtype: (model, tokenizer))
    source = Pool.open(pool.path)
    options = ["--registered", 4, 9, "--batch", 2, "--distinct", 2, "--words", 3, "--new-tokens", 2, "--rounds", 1]
    bench_scripts.run(script, "--pool", source.path, *options, "--json", tmp_path / "pool.jsonl")
    found = lines(tmp_path / "pool.jsonl")
    assert [line["registered"] for line in found if "tokens_per_s" in line] == [4, 9]
    assert all(line["add_s"]["median"] > 0 for line in found if "add_s" in line)
    assert len(source) == len(Pool.open(pool.path))


def test_costs_grow_with_what_is_used_and_hardly_with_what_is_registered(scripts: Any, tmp_path: Path) -> None:
    cost = scripts.load("benchmarks/cost.py")

    def whole(**more: int) -> float:
        load = cost.Load(**{"batch": 32, "prompt": 100, "distinct": 8} | more)
        found = cost.ratios(cost.SMOL, load, cost.H100, 32)
        assert all(0 < found[part] < 1 for part in ("prefill", "decode", "whole"))
        return float(found["whole"])

    assert whole(distinct=1) > whole() > whole(distinct=32)
    assert whole(rank=4) > whole() > whole(rank=64)
    assert whole() > whole(registered=1_000_000) > 0.9 * whole()
    (down, *_), new = cost.delta_pass(cost.SMOL, cost.Load(2, 5, 3, rank=4), 5), 10
    assert down.flops == 2 * 576 * (2 * 12) * new  # q and v: 12 ROCs each
    measured = cost.measured_device()
    assert all(value > 0 for value in measured.values())


def test_answers_together_are_compared_with_each_alone(
    bench_scripts: Any, shared_pool: Any, tokenizer: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(copy.deepcopy(model), pool, "hilora", tokenizer=tokenizer, embedder=embedder)
    script, out = bench_scripts.load("benchmarks/same.py"), tmp_path / "same.jsonl"
    monkeypatch.setattr(script.HiLoRA, "from_pretrained", lambda *_, **__: router)
    small = ("--pool", pool.path, "--words", 3, "--new-tokens", 4, "--batch", 3, "--group", 4, "--json", out)
    bench_scripts.run(script, *small, "--answers", 4)
    bench_scripts.run(script, *small, "--answers", 6)
    _, *found = lines(out)
    assert [line["prompt"] for line in found] == list(range(6))
    assert all(line["same"] and 2 <= line["tokens"] <= 4 for line in found)  # fp64
    finish, calls = script.finish, list[int]()

    def spoilt(router: Any, asked: Any, most: int) -> None:
        finish(router, asked, most)
        if most > 1:
            asked[0].new[1] += 1
        calls.append(most)

    monkeypatch.setattr(script, "finish", spoilt)
    out.unlink()
    bench_scripts.run(script, *small, "--answers", 4)
    _, first, *rest = lines(out)
    assert (first["same"], first["at"]) == (False, 1)
    assert first["gap"] > 0
    assert all(line["same"] for line in rest)


def test_two_checkouts_stand_side_by_side_and_take_turns(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = scripts.load("benchmarks/checkouts.py")
    here, asked = sys.modules["hilora"], list[str]()
    package = (
        "from types import SimpleNamespace\nfrom hilora.inner import name\nclass HiLoRA:\n"
        "    model = SimpleNamespace(config=SimpleNamespace(vocab_size=9))\n"
        "    @classmethod\n    def from_pretrained(cls, **_):\n        return cls()\n"
        "    def generate(self, prompts, **_):\n        from hilora.inner import name\n        LOG.append(name)\n"
        "        return []\n"
    )
    for name in ("before", "after"):
        (tmp_path / name / "hilora").mkdir(parents=True)
        (tmp_path / name / "hilora" / "__init__.py").write_text(package)
        (tmp_path / name / "hilora" / "inner.py").write_text(f"name = {name!r}")
    monkeypatch.setattr("builtins.LOG", asked, raising=False)
    monkeypatch.setattr(module, "HERE", tmp_path / "after")
    monkeypatch.setattr(module, "commit_of", lambda folder: "0" * 12)
    out = tmp_path / "found.jsonl"
    scripts.run(module, "--before", tmp_path / "before", "--pool", tmp_path, "--rounds", 3, "--json", out)
    assert asked[:6] == ["before"] * 3 + ["after"] * 3  # one token, then all, then as they come
    assert Counter(asked) == {"before": 12, "after": 12}
    found = lines(out)[1:]
    assert Counter(line["checkout"] for line in found) == {"before": 3, "after": 3}
    assert sys.modules["hilora"] is here
    assert "after / before" in capsys.readouterr().out


def test_architectures_are_classed_and_compared_and_the_run_resumes(
    bench_scripts: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = bench_scripts.load("benchmarks/architectures.py")
    some = {
        ("causal", "llama"): "LlamaForCausalLM",
        ("causal", "mamba"): "MambaForCausalLM",
        ("seq2seq", "led"): "LED",
    }
    monkeypatch.setattr(script, "architectures", lambda: dict(list(some.items())[:2]))
    out, page = tmp_path / "found.jsonl", tmp_path / "page.md"
    bench_scripts.run(script, "--json", out)
    monkeypatch.setattr(script, "architectures", lambda: some | {("causal", "blt"): "BltForCausalLM"})
    bench_scripts.run(script, "--json", out, "--page", page)
    found = {line["type"]: line for line in lines(out)}
    assert list(found) == ["llama", "mamba", "led", "blt"]
    assert {name: line.get("batching") for name, line in found.items()} == {
        **{"llama": "open", "mamba": "closed", "led": "closed"},
        "blt": None,
    }
    assert "weights" in found["blt"]["skipped"]
    assert all(line["right"] for name, line in found.items() if name != "blt")
    assert found["led"]["by_step"] > 0
    assert not found["mamba"]["ways"]["open"].startswith("same")
    assert "3 architectures ran (1 open, 2 closed, 0 alone), 0 of them wrong; 1 could not" in page.read_text()


def test_the_page_of_architectures_is_what_the_lines_say(bench_scripts: Any) -> None:
    script = bench_scripts.load("benchmarks/architectures.py")
    kept = lines(ROOT / "benchmarks" / "architectures.jsonl")
    assert (ROOT / "docs" / "architectures.md").read_text() == script.page(kept)
    assert [line["type"] for line in kept if not line.get("right", True)] == []


def test_bits_are_compared_with_the_whole_base(
    bench_scripts: Any,
    shared_pool: Any,
    tmp_path: Path,
    tokenizer: Any,
    embedder: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/quantised.py")
    coarse = copy.deepcopy(model)
    coarse.model.embed_tokens.weight.data.mul_(4).round_().div_(4)  # what a pool does not sample

    def load(name: str, *, device_map: str, **how: Any) -> tuple[Any, Any]:
        return (coarse if "quantization_config" in how else model), tokenizer

    monkeypatch.setattr(script, "load_base", load)
    monkeypatch.setattr(script, "Embedder", lambda: embedder)
    monkeypatch.setattr(script, "_version", lambda: "0")
    (tmp_path / "data").mkdir()
    for name in pool.names:
        row = json.dumps({"inputs": "abab zzy", "targets": "ab"}) + "\n"
        (tmp_path / "data" / f"{name}.jsonl").write_text(2 * row)
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text(f"Before.\n\n{script.BEGIN}{script.END}\n\nAfter.\n")
    bench_scripts.run(script, "--data", tmp_path / "data", "--pool", pool.path, "--json", out, "--page", page)
    setup, *rows = lines(out)
    assert setup["rows"] == len(pool.names)
    assert len(rows) == len(pool.names) * len(script.METHODS) * len(script.LOADINGS)
    for row in rows:
        assert row["log_prob"] < 0
        whole = "bit" not in row["base"]
        assert (row["divergence"] == 0) == whole
        assert row["same"] <= 1
        assert row["same"] == 1 or not whole
    told = {(row["method"], row["base"], row["task"]): row["log_prob"] for row in rows}
    assert any(told["base", "fp32", name] != told["oracle", "fp32", name] for name in pool.names)
    table = page.read_text().removeprefix("Before.\n\n").removesuffix("\n\nAfter.\n")
    assert table.count("\n| ") == 2 + len(script.METHODS) * len(script.LOADINGS)
    assert table.split("\n", 1)[1].rsplit("\n", 1)[0] in capsys.readouterr().out


def test_compiled_steps_are_timed_beside_others(
    bench_scripts: Any, shared_pool: Any, tmp_path: Path, tokenizer: Any, embedder: Any, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/compiled.py")
    monkeypatch.setattr(script, "load_base", lambda name, **how: (copy.deepcopy(model), tokenizer))
    monkeypatch.setattr(script, "embedder_of", lambda pool: embedder)
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    few = ("--batches", "2", "--words", "3", "--adapters", "2", "--new-tokens", "3", "--rounds", "1")
    given = ("--pool", pool.path, "--json", out, "--dtypes", "fp32", "--backend", "eager", "--no-start", *few)
    bench_scripts.run(script, *given)
    (found,) = lines(out)
    assert set(found["step_ms"]) == set(script.NAMES)
    assert set(found["decode"]["compiled_hilora/compiled_base"]) == {"median", "least", "most"}
    page.write_text(f"Before.\n\n{script.BEGIN}{script.END}\n\nAfter.\n")
    bench_scripts.run(script, "--json", out, "--page", page)
    assert "| fp32, 2 |" in page.read_text()


def test_the_page_of_compiled_steps_is_what_the_lines_say(bench_scripts: Any) -> None:
    script, page = bench_scripts.load("benchmarks/compiled.py"), (ROOT / "docs" / "compiled.md").read_text()
    assert script.on_page(page, lines(ROOT / "benchmarks" / "compiled.jsonl")) == page


def test_kinds_of_quantised_bases_are_tried_and_shown(
    bench_scripts: Any, tiny: Any, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = bench_scripts.load("benchmarks/quantisers.py")
    monkeypatch.setattr(script, "tiny_base", lambda folder: make_base(folder, tiny))
    monkeypatch.setattr(script, "Embedder", lambda: embedder)
    out, page = tmp_path / "kinds.jsonl", tmp_path / "page.md"
    page.write_text(f"Before.\n\n{script.BEGIN}{script.END}\n\nAfter.\n")
    bench_scripts.run(script, "--kinds", "4bit", "int4", "--json", out, "--page", page)
    _, works, refused = lines(out)
    assert (works["works"], works["module"], works["alone"]) == (True, "Linear4bit", True)
    assert not refused["works"]
    assert page.read_text().count("\n| ") == 4
    kept = lines(ROOT / "benchmarks" / "quantisers.jsonl")
    assert [line["kind"] for line in kept[1:]] == list(script.KINDS)
    shown = (ROOT / "docs" / "gpus.md").read_text()
    assert script.on_page(shown, kept) == shown


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_first_use_is_timed_in_its_parts(
    is_ahead: bool, bench_scripts: Any, tiny: Any, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", tiny)
    made, script = (bench_scripts.load(f"benchmarks/{name}.py") for name in ("made", "cold"))
    pool = made.random_pool(tmp_path, base, 6, 2, ("q_proj", "down_proj"), describe_embedder(embedder))
    if is_ahead:
        monkeypatch.setattr("hilora.engine.bank.ahead_of", Ahead)
    router = HiLoRA.from_pretrained(base, pool, "hilora", embedder=embedder, device_map="cpu", dtype="fp32")
    line = script.cold_first_use(router, 1)
    assert set(line["ms"]) == set(script.STATES) - (set() if is_ahead else {"pack", "ahead"})
    assert line["sites"] == 4
    assert router.lanes.bank.slots is None  # nothing of the router's own was touched


def test_epochs_end_beside_fresh_ones_uploads_are_timed_and_the_run_resumes(
    bench_scripts: Any, shared_pool: Any, embedder: Any, tiny: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pool = Pool.open(shutil.copytree(shared_pool("llama")[1].path, tmp_path / "pool"))
    monkeypatch.setattr("hilora.base.embed.EmbedderInfo.load", lambda *_: embedder)
    script = bench_scripts.load("benchmarks/epochs.py")
    monkeypatch.setattr(script, "GROWTHS", (1.1, 2.0))
    (tmp_path / "data").mkdir()
    for task in tiny.tasks:
        rows = [json.dumps({"inputs": text, "targets": "x"}) for text in tiny.texts(task, 12, 9)]
        (tmp_path / "data" / f"{task}.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out.jsonl"
    small = ("--pool", pool.path, "--data", tmp_path / "data", "--draws", 1, "--times", 2, "--json", out)
    bench_scripts.run(script, *small, "--adapters", 4)
    first = lines(out)
    ended = [line for line in first if line.get("what") == "end of an epoch"]
    assert [(line["growth"], line["members"]) for line in ended] == [(1.1, 3), (2.0, 2)]
    for line in ended:
        assert line["prompts"] == 4 * 6
        assert line["new_prompts"] == 6 * (4 - line["members"])
        for found in (line["ended"], line["fresh"]):
            assert all(0 <= found[name] <= 1 for name in ("top1", "new_top1", "coverage", "seen", "hilora_top1"))
    uploads = [line for line in first if line.get("what") == "upload"]
    assert [line["method"] for line in uploads] == list(script.METHODS)
    assert all(line["routable_s"]["median"] > 0 for line in uploads)
    out.write_text("".join(json.dumps(line) + "\n" for line in first if line.get("method") != "fusion"))
    bench_scripts.run(script, *small, "--adapters", 4)
    again = lines(out)[len(first) - 1 :]
    assert [line.get("method", line.get("what")) for line in again] == [None, "epoch", "fusion"]


def test_honest_newcomers_and_attacks_meet_the_bound(
    bench_scripts: Any, shared_pool: Any, embedder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pool = Pool.open(shared_pool("llama")[1].path)
    monkeypatch.setattr("hilora.base.embed.EmbedderInfo.load", lambda *_: embedder)
    script, out = bench_scripts.load("benchmarks/capture.py"), tmp_path / "capture.jsonl"
    monkeypatch.setattr(script, "CAPTURE", 0.06)
    small = ("--copies", 1, len(pool), "--mixed", 8, "--bare", 8, "--generic", 5, "--mean", 5)
    bench_scripts.run(script, "--pool", pool.path, *small, "--json", out)
    header, *found, summed = lines(out)
    assert (header["adapters"], header["bound"]) == (len(pool), 0.06)
    assert [line["adapter"] for line in found if line["what"] == "newcomer"] == list(pool.names)
    assert [line["what"] for line in found[len(pool) :]] == ["copies", "copies", "mixed", "bare", "generic", "mean"]
    for line in found:
        assert line["share"] == max(line["shares"].values())
        assert line["refused"] == (line["share"] > 0.06)
        assert line["worst_hit"] is None or line["worst_hit"] != line.get("adapter")
        assert (line["worst"] > 0) == (line["worst_hit"] is not None)
    one, every = found[len(pool) : len(pool) + 2]
    assert (one["worst"], one["worst_hit"]) == (1, pool.names[0])  # who has an adapter's very samples takes them
    assert every["refused"]
    assert not one["refused"]
    assert summed["refused_from"]["copies"] == every["samples"]
    assert summed["refused"] == sum(line["refused"] for line in found[: len(pool)])
    table = bench_scripts.load("benchmarks/targets.py").page(tmp_path).split("## What an upload may take")[1]
    assert table.count("\n| ") == 2 + 1 + 6


def test_the_page_says_what_its_rows_say(bench_scripts: Any) -> None:
    script = bench_scripts.load("benchmarks/targets.py")
    home = Path(__file__).parents[2] / "benchmarks"
    assert script.page(home) == (home / "README.md").read_text()


def test_memory_of_shapes_is_bounded_by_the_caches_capacity(
    bench_scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = bench_scripts.load("benchmarks/shapes.py")
    monkeypatch.setattr(shapes, "CAPACITIES", (64,))
    bench_scripts.run(shapes, "--json", tmp_path / "shapes.jsonl")
    _, row = lines(tmp_path / "shapes.jsonl")
    assert row["capacity"] == 64
    assert len(row["mib"]) == 1 + shapes.PRODUCTS // shapes.EVERY


def test_a_grid_of_weights_is_priced_in_answers(
    bench_scripts: Any, shared_pool: Any, tmp_path: Path, tokenizer: Any, embedder: Any, monkeypatch: Any
) -> None:
    model, pool = shared_pool("llama")
    script = bench_scripts.load("benchmarks/compositions.py")
    monkeypatch.setattr(script, "load_base", lambda name, **how: (model, tokenizer))
    monkeypatch.setattr(type(pool.embedder), "load", lambda *args, **how: embedder)
    (tmp_path / "data").mkdir()
    for name in pool.names:
        row = json.dumps({"inputs": "abab zzy mno 123", "targets": "ab", "metric": "em"}) + "\n"
        (tmp_path / "data" / f"{name}.jsonl").write_text(2 * row)
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text(f"Before.\n\n{script.BEGIN}{script.END}\n\nAfter.\n")
    few = ("--pool", pool.path, "--new-tokens", "3")
    bench_scripts.run(script, "--data", tmp_path / "data", "--json", out, "--page", page, *few)
    _, *rows = lines(out)
    assert {row["way"] for row in rows} == {script.SELECTION, *script.GRIDS}
    assert len(rows) == len(pool.names) * (1 + len(script.GRIDS))
    by_way = {way: [row["composition"] for row in rows if row["way"] == way] for way in script.GRIDS}
    assert len(set(by_way["1"])) <= len(set(by_way["as they are"]))
    assert page.read_text().count("\n| ") == 2 + 1 + len(script.GRIDS)


@pytest.mark.parametrize(("name", "rows"), [("compositions", 6), ("in_vllm", 11), ("equal_in_vllm", 4)])
def test_the_page_of_vllm_is_what_the_lines_say(bench_scripts: Any, name: str, rows: int) -> None:
    script, page = bench_scripts.load(f"benchmarks/{name}.py"), (ROOT / "docs" / "vllm.md").read_text()
    told = script.table(lines(ROOT / "benchmarks" / f"{name}.jsonl"))
    assert told.count("\n| ") == rows + 1
    assert bench_scripts.load("benchmarks/lines.py").placed(page, script.BEGIN, script.END, told) == page


def test_engines_of_vllm_have_turns_and_what_they_say_is_kept(
    bench_scripts: Any, shared_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, pool = bench_scripts.load("benchmarks/in_vllm.py"), shared_pool("llama")[1]
    asked: list[str] = []

    class Played:
        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def __call__(self, way: str) -> Any:
            asked.append(f"{self.name}: {way}")
            return {"tokens": 8, "seconds": 0.5 if self.name == "plain" else 1.0, "kinds": 2}

    monkeypatch.setattr(script, "Engine", Played)
    out, page, data = tmp_path / "rows.jsonl", tmp_path / "page.md", tmp_path / "data.jsonl"
    page.write_text(f"Before.\n\n{script.BEGIN}{script.END}\n\nAfter.\n")
    data.write_text("")
    given = ("--data", data, "--pool", pool.path, "--base", "tiny", "--rounds", "2", "--json", out, "--page", page)
    bench_scripts.run(script, *given)
    setup, *rows = lines(out)
    ways = sum(map(len, script.ENGINES.values()))
    assert setup["rounds"] == 2
    assert len(rows) == 2 * ways == len(asked) - ways  # the first round warms up
    assert "| lora: selection | 2 | 8 | 0.50 (0.50 to 0.50) |" in page.read_text()
